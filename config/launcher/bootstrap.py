"""Makes `.venv` and installs the locked packages. Run by `./stokehold` with any Python >= 3.11: standard library only.

usage: bootstrap.py ROOT LOCK...      e.g. bootstrap.py /srv/stokehold requirements requirements-demo

A lock counts as installed when `.venv/LOCK.installed` equals `LOCK.txt`. `.venv/installing` exists while packages are
being written: found at the start, it tells of an interrupted install, and the environment is made anew.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

NEEDED_FREE_BYTES = 1_500_000_000
_NETWORK = re.compile(
    r"name resolution|dns error|failed to lookup|Could not resolve|NewConnectionError|Connection refused|"
    r"error sending request|Network is unreachable|ConnectTimeout|Read timed out|Could not fetch URL|Failed to fetch|"
    r"ProxyError|operation timed out",
    re.IGNORECASE,
)
_NO_WHEEL = re.compile(
    r"No matching distribution|no wheels? with a matching|only has wheels for|no version of|not a supported wheel|"
    r"no wheels are available",
    re.IGNORECASE,
)


class InstallError(Exception):
    """What went wrong and what to do, in one sentence."""


class Progress:
    """One line that is rewritten on a terminal; elsewhere a line every few seconds."""

    def __init__(self) -> None:
        self._tty = sys.stderr.isatty()
        self._last = 0.0

    def say(self, text: str) -> None:
        self.clear()
        print(f"stokehold: {text}", file=sys.stderr, flush=True)

    def detail(self, text: str) -> None:
        now = time.monotonic()
        if self._tty:
            print(f"\r\x1b[2K  {text[:100]}", end="", file=sys.stderr, flush=True)
        elif now - self._last > 5:
            self._last = now
            print(f"  {text[:160]}", file=sys.stderr, flush=True)

    def clear(self) -> None:
        if self._tty:
            print("\r\x1b[2K", end="", file=sys.stderr, flush=True)


def main(root: Path, locks: list[str]) -> int:
    progress = Progress()
    handle = os.open(root, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)  # a second launcher waits here, then finds everything done
        _install_all(root, locks, progress)
    except InstallError as error:
        progress.clear()
        print(f"stokehold: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        progress.clear()
        print("stokehold: interrupted; the next start repairs the installation.", file=sys.stderr)
        return 130
    except OSError as error:
        progress.clear()
        print(
            f"stokehold: cannot write to {root}: {error.strerror}; free space or fix its permissions.", file=sys.stderr
        )
        return 1
    finally:
        os.close(handle)
    return 0


def _install_all(root: Path, locks: list[str], progress: Progress) -> None:
    venv = root / ".venv"
    if (venv / "installing").exists() or (venv.exists() and not _works(venv)):
        progress.say("the last installation was interrupted or its Python is gone: making .venv anew")
        shutil.rmtree(venv)
    missing = [lock for lock in locks if not _is_installed(root, lock)]
    if missing and shutil.disk_usage(root).free < NEEDED_FREE_BYTES:
        free_mb = shutil.disk_usage(root).free // 1_000_000
        raise InstallError(
            f"only {free_mb} MB are free where {root} lies and 1500 MB are needed: free some and repeat."
        )
    if not venv.exists():
        progress.say(f"making .venv with Python {sys.version.split()[0]}")
        _make_venv(venv)
    for lock in missing:
        marker = venv / "installing"
        marker.touch()
        started = time.monotonic()
        progress.say(f"installing {lock}.txt with {'uv' if shutil.which('uv') else 'pip'}")
        try:
            if lock == "requirements-demo":
                _install_demo(root, lock, progress)
            else:
                _run_installer(venv, ["--require-hashes", "-r", str(root / f"{lock}.txt")], progress)
                _stamp(root, lock)
        except InstallError:
            marker.unlink()  # it said what is wrong and is tried again in place: what works is not thrown away
            raise
        marker.unlink()
        progress.say(f"installed {lock}.txt in {time.monotonic() - started:.0f} s")


def _is_installed(root: Path, lock: str) -> bool:
    stamp = root / ".venv" / f"{lock}.installed"
    return stamp.exists() and stamp.read_bytes() == (root / f"{lock}.txt").read_bytes()


def _stamp(root: Path, lock: str) -> None:
    shutil.copyfile(root / f"{lock}.txt", root / ".venv" / f"{lock}.installed")


def _works(venv: Path) -> bool:
    check = "import sys; sys.exit(sys.version_info < (3, 11))"
    try:
        return subprocess.run([str(venv / "bin" / "python"), "-c", check], check=False).returncode == 0
    except OSError:
        return False


def _make_venv(venv: Path) -> None:
    command = [sys.executable, "-m", "venv", str(venv)]
    if shutil.which("uv"):
        command.append("--without-pip")
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode:
        shutil.rmtree(venv, ignore_errors=True)
        output = made.stdout + made.stderr
        if "ensurepip" in output:
            raise InstallError(
                "this Python cannot make environments: install its venv package (Debian: apt install python3-venv)."
            )
        raise InstallError(f"making .venv failed ({_last_line(output)}); free space or fix permissions, then repeat.")


def _install_demo(root: Path, lock: str, progress: Progress) -> None:
    """The demo is never a reason to stop: without it `up` goes on, and says so."""
    venv = root / ".venv"
    for requirement in _requirements(root / f"{lock}.txt"):
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
            file.write(requirement)
            file.flush()
            try:
                _run_installer(venv, ["--no-deps", "--require-hashes", "-r", file.name], progress)
            except InstallError as error:
                progress.say(f"{requirement.split('=')[0]} (demo) is not installed: {error}")
                if not isinstance(error.__cause__, _NoWheel):
                    return  # tried again at the next start
    _stamp(root, lock)


def _requirements(path: Path) -> list[str]:
    """The lock's entries, each with its hashes."""
    lines = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
    return [entry for entry in re.split(r"\n(?=\S)", "\n".join(lines)) if entry.strip()]


class _NoWheel(Exception):
    pass


def _run_installer(venv: Path, arguments: list[str], progress: Progress) -> None:
    python = str(venv / "bin" / "python")
    if uv := shutil.which("uv"):
        command = [uv, "pip", "install", "--python", python, *arguments]
    else:
        if subprocess.run([python, "-m", "pip", "--version"], capture_output=True, check=False).returncode:
            subprocess.run([python, "-m", "ensurepip"], capture_output=True, check=False)
        command = [python, "-m", "pip", "install", "--disable-pip-version-check", *arguments]
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    installer = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    output: list[str] = []
    try:
        assert installer.stdout is not None  # noqa: S101  # for the type checker: it is a pipe
        for line in installer.stdout:
            output.append(line)
            if line.strip():
                progress.detail(line.strip())
    finally:
        progress.clear()
        if installer.poll() is None:
            installer.terminate()
        installer.wait()
    if installer.returncode == 0:
        return
    text = "".join(output)
    (venv / "install.log").write_text(text)
    if re.search(r"No space left|Errno 28", text):
        raise InstallError("the disk is full: free at least 1.5 GB and repeat.")
    if _NETWORK.search(text):
        raise InstallError(
            "the package index cannot be reached: check the network (or your index's settings) and repeat."
        )
    if re.search(r"DO NOT MATCH THE HASHES|Hash mismatch", text):
        raise InstallError(
            "a package does not match its locked hash: your index or a proxy serves other files than PyPI."
        )
    if _NO_WHEEL.search(text):
        raise InstallError(
            "the package index has nothing that fits this platform and Python, or cannot be reached: "
            f"check the network (or your index's settings) and repeat; see {venv / 'install.log'}."
        ) from _NoWheel()
    raise InstallError(f"installing failed ({_last_line(text)}); see {venv / 'install.log'} and repeat.")


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:200] if lines else "no output"


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))

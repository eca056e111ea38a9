"""Command line of the launcher."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from config.launcher.errors import LauncherError
from config.launcher.installation import open_installation

_EPILOG = """commands of manage.py work too, e.g.:
  ./stokehold test -n 2             run the tests
  ./stokehold join_token            a token by which another server joins
  ./stokehold import_model NAME PATH
  ./stokehold help                  all of them"""


def parser() -> argparse.ArgumentParser:
    """All options. Those of `up` that are not given keep what the last start had."""
    main = argparse.ArgumentParser(
        prog="./stokehold",
        description="One OpenAI-compatible LM service from many servers.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = main.add_subparsers(dest="command", metavar="COMMAND", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--home", type=Path, help="folder of the installation (default: STOKEHOLD_HOME, or .stokehold)")
    _add_up(commands.add_parser("up", parents=[common], help="start everything, and say where it is"))
    down = commands.add_parser("down", parents=[common], help="stop everything")
    down.add_argument("--keep-engines", action="store_true", help="leave engines running; the next start adopts them")
    status = commands.add_parser("status", parents=[common], help="processes, servers and deployments")
    status.add_argument("--json", action="store_true", help="for programs")
    status.add_argument("--wait", type=float, metavar="SECONDS", default=0, help="wait until all is well")
    logs = commands.add_parser("logs", parents=[common], help="what the processes write")
    logs.add_argument("-f", "--follow", action="store_true", help="go on as it comes")
    logs.add_argument("process", nargs="?", help="only this one, e.g. master")
    chat = commands.add_parser("chat", parents=[common], help="ask the demo model through the gateway")
    chat.add_argument("prompt")
    chat.add_argument("--model", help="another model than the demo's")
    chat.add_argument("--max-tokens", type=int, default=256)
    return main


def _add_up(up: argparse.ArgumentParser) -> None:
    up.add_argument("--port", type=_port, help="admin and REST API (8000)")
    up.add_argument("--gateway-port", type=_port, help="OpenAI-compatible gateway (8080)")
    up.add_argument("--gateway-processes", type=_count, metavar="N", help="processes of the gateway on its port (1)")
    up.add_argument("--link-port", type=_port, help="TLS, for agents and gateways of other machines (8443)")
    up.add_argument("--listen", metavar="ADDR", help="address to listen on (127.0.0.1; 0.0.0.0: every)")
    up.add_argument("--database-url", metavar="URL", help="e.g. postgresql://user:password@host/name (default: SQLite)")
    up.add_argument("--detach", action="store_true", help="return when ready, and go on in the background")
    up.add_argument("--no-demo", action="store_true", help="without demo model, deployment and key")
    up.add_argument("--runtime", choices=["auto", "docker", "process"], help="what runs the demo engine (auto)")
    up.add_argument("--image", help="image of the demo engine under docker (default: the engine's official one)")
    up.add_argument("--keep-engines", action="store_true", help="on Ctrl-C, leave engines running")


def _port(text: str) -> int:
    if not text.isdigit() or not 0 < int(text) < 65536:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port (1 to 65535)")
    return int(text)


def _count(text: str) -> int:
    if not text.isdigit() or not 0 < int(text) <= 64:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to 64")
    return int(text)


def main(argv: list[str]) -> int:
    """Run a command; its exit status."""
    arguments = parser().parse_args(argv or ["--help"])
    try:
        return _run(arguments)
    except LauncherError as error:
        print(f"stokehold: {error}", file=sys.stderr)
        for line in error.lines:
            print(f"    {line}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _run(arguments: argparse.Namespace) -> int:
    """Imports come late: `chat` and `logs` need none of what `up` needs."""
    if arguments.command == "up":
        from config.launcher.up import up

        given = {
            key: getattr(arguments, key)
            for key in ("port", "gateway_port", "gateway_processes", "link_port", "listen", "runtime", "image")
        }
        given["database_url"] = arguments.database_url or os.environ.get("DATABASE_URL") or None
        installation = open_installation(arguments.home, given)
        return up(
            installation,
            detach=arguments.detach,
            with_demo=not arguments.no_demo,
            keep_engines=arguments.keep_engines,
        )
    installation = open_installation(arguments.home)
    if arguments.command == "down":
        from config.launcher.down import down

        return down(installation, keep_engines=arguments.keep_engines)
    if arguments.command == "status":
        from config.launcher.status import status

        return status(installation, as_json=arguments.json, wait_s=arguments.wait)
    if arguments.command == "logs":
        from config.launcher.logs import logs

        return logs(installation, arguments.process, follow=arguments.follow)
    from config.launcher.chat import chat

    return chat(installation, arguments.prompt, arguments.model, arguments.max_tokens)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

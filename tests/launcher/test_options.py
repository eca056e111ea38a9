"""What `up` is started with, and what it remembers."""

from pathlib import Path

import pytest

from config.home import Home
from config.launcher.__main__ import main, parser
from config.launcher.installation import Installation, Options, open_installation


def test_options_that_are_not_given_keep_what_the_last_start_had() -> None:
    saved = {"port": 9000, "listen": "0.0.0.0", "of_another_release": 1}
    assert Options.resolve(saved, {"port": None, "gateway_port": 9001}) == Options(
        port=9000, gateway_port=9001, listen="0.0.0.0"
    )


def test_the_first_start_has_the_documented_ports() -> None:
    options = Options.resolve({}, {})
    assert (options.port, options.gateway_port, options.link_port, options.listen) == (8000, 8080, 8443, "127.0.0.1")


@pytest.mark.parametrize(
    ("listen", "url"),
    [("127.0.0.1", "http://127.0.0.1:8000"), ("0.0.0.0", "http://127.0.0.1:8000"), ("::1", "http://[::1]:8000")],
)
def test_the_admin_url_is_one_this_machine_can_open(tmp_path: Path, listen: str, url: str) -> None:
    assert Installation(Home(tmp_path), Options(listen=listen)).master_url == url


def test_a_relative_home_is_taken_from_where_the_caller_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert open_installation(Path("here")).home.path == tmp_path / "here"


@pytest.mark.parametrize("port", ["0", "65536", "eighty", "-1"])
def test_what_is_no_port_is_refused(port: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parser().parse_args(["up", f"--port={port}"])
    assert "is not a port" in capsys.readouterr().err


def test_a_home_where_nothing_ran_has_no_logs_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["logs", "--home", str(tmp_path)]) == 1
    assert "has `./stokehold up` run" in capsys.readouterr().err


def test_chat_without_a_demo_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", "hi", "--home", str(tmp_path)]) == 1
    assert "run `./stokehold up` first" in capsys.readouterr().err


def test_the_environment_of_processes_names_home_and_database(tmp_path: Path) -> None:
    env = Installation(Home(tmp_path), Options(database_url="sqlite:////x")).environment()
    assert (env["STOKEHOLD_HOME"], env["DATABASE_URL"]) == (str(tmp_path), "sqlite:////x")

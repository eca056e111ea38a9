"""The supervisor's configuration, read by the supervisor itself."""

from pathlib import Path

import pytest
from supervisor.options import ServerOptions

from config.launcher.programs import Layout, Program, programs, supervisor_config

NAMES = ["valkey", "master", "controller", "worker", "beat", "gateway", "agent"]


def make_layout(folder: Path, **changes: object) -> Layout:
    values = {
        "home": folder,
        "run": folder / "run",
        "logs": folder / "logs",
        "source": folder,
        "python": "/usr/bin/python3",
        "valkey_server": "/opt/valkey-server",
        "listen": "127.0.0.1",
        "port": 8000,
        "gateway_port": 8080,
        "link_port": 8443,
        "open_files": 1024,
    }
    return Layout(**(values | changes))  # type: ignore[arg-type]


def read(layout: Layout) -> ServerOptions:
    """What supervisord understands of the text."""
    for folder in (layout.run, layout.logs):
        folder.mkdir(parents=True)
    path = layout.run / "supervisord.conf"
    path.write_text(supervisor_config(layout))
    options = ServerOptions()
    options.realize(["-c", str(path)])
    return options


def commands(options: ServerOptions) -> dict[str, str]:
    return {group.name: group.process_configs[0].command for group in options.process_group_configs}


def test_every_process_of_an_installation_is_supervised(tmp_path: Path) -> None:
    assert sorted(commands(read(make_layout(tmp_path)))) == sorted(NAMES)


def test_an_outside_redis_leaves_valkey_out(tmp_path: Path) -> None:
    assert "valkey" not in commands(read(make_layout(tmp_path, valkey_server="")))


def test_several_gateway_processes_count_in_the_redis_that_is_there(tmp_path: Path) -> None:
    one = commands(read(make_layout(tmp_path / "1")))["gateway"]
    own = commands(read(make_layout(tmp_path / "2", gateway_processes=4)))["gateway"]
    other = make_layout(tmp_path / "3", gateway_processes=4, valkey_server="", redis_url="redis://there:6379/0")
    assert "--processes" not in one
    assert f"--processes 4 --redis unix://{tmp_path}/2/run/valkey.sock" in own
    assert "--processes 4 --redis redis://there:6379/0" in commands(read(other))["gateway"]


@pytest.mark.parametrize("name", ["with space", "50%done", "it's", 'quo"te'])
def test_odd_folder_names_reach_the_processes_whole(tmp_path: Path, name: str) -> None:
    import shlex

    layout = make_layout(tmp_path / name)
    found = commands(read(layout))
    expected = {program.name: list(program.argv) for program in programs(layout)}
    assert {process: shlex.split(command) for process, command in found.items()} == expected


def test_processes_come_back_however_often_they_die(tmp_path: Path) -> None:
    for group in read(make_layout(tmp_path)).process_group_configs:
        config = group.process_configs[0]
        assert config.startretries > 1_000_000
        assert not config.autostart


def test_stopping_the_agent_does_not_signal_its_engines(tmp_path: Path) -> None:
    for group in read(make_layout(tmp_path)).process_group_configs:
        config = group.process_configs[0]
        assert not config.stopasgroup
        assert not config.killasgroup


def test_there_is_one_beat_and_it_is_apart_from_the_worker(tmp_path: Path) -> None:
    found: dict[str, Program] = {program.name: program for program in programs(make_layout(tmp_path))}
    assert "beat" in found["beat"].argv
    assert not {"--beat", "-B"} & set(found["worker"].argv)


def test_colons_in_a_folder_do_not_break_the_tls_endpoint(tmp_path: Path) -> None:
    master = next(p for p in programs(make_layout(tmp_path / "a:b")) if p.name == "master")
    assert any("a\\:b/ca/master.key" in part for part in master.argv)

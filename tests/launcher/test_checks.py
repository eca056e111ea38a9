"""What is checked before anything starts: each failure is one sentence with what to do."""

import socket
from pathlib import Path

import pytest

from config.home import Home
from config.launcher.checks import check_home, check_ports
from config.launcher.errors import LauncherError
from config.launcher.installation import Options
from tests.ports import free_port


@pytest.mark.parametrize("option", ["port", "gateway_port", "link_port"])
def test_a_port_in_use_names_its_option(option: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        ports = {name: free_port() for name in ("port", "gateway_port", "link_port")}
        ports[option] = server.getsockname()[1]
        with pytest.raises(LauncherError, match=f"port {ports[option]} is in use.*--{option.replace('_', '-')}"):
            check_ports(Options(**ports))  # type: ignore[arg-type]


def test_free_ports_are_fine() -> None:
    check_ports(Options(port=free_port(), gateway_port=free_port(), link_port=free_port()))


def test_two_equal_ports_are_refused() -> None:
    port = free_port()
    with pytest.raises(LauncherError, match="must differ"):
        check_ports(Options(port=port, gateway_port=port, link_port=free_port()))


def test_an_address_of_another_machine_names_listen() -> None:
    with pytest.raises(LauncherError, match="--listen"):
        check_ports(Options(port=free_port(), gateway_port=free_port(), link_port=free_port(), listen="192.0.2.1"))


def test_a_home_that_cannot_be_made_names_home(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LauncherError, match="--home"):
        check_home(Home(tmp_path / "file" / "home"))

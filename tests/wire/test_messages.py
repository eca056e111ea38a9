"""Messages survive the wire; what is malformed is refused, not guessed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire import feed, messages
from wire.engine import EngineSpec, spec_hash
from wire.errors import BadMessage
from wire.manifest import Manifest, ManifestFile, check_manifest, check_path
from wire.versions import OLDEST_PROTOCOL, PROTOCOL, speaks

LOAD = messages.Load(
    cpu_percent=1.5, memory_total_bytes=8, memory_available_bytes=4, disk_total_bytes=2, disk_free_bytes=1
)


def test_messages_of_an_agent_come_back_equal() -> None:
    for message in (
        messages.Metrics(at=1.0, load=LOAD),
        messages.Observed(
            generation=3,
            instances=(
                messages.ObservedInstance(instance_id="i-1", spec_hash="aa", state=messages.InstanceState.READY),
            ),
        ),
        messages.LogTail(nonce="n", instance_id="i-1", lines=("ä", "b")),
    ):
        assert messages.decode_from_agent(messages.encode(message)) == message


def test_messages_of_a_gateway_come_back_equal() -> None:
    message = feed.GatewayStatus(at=1.0, routable=("i-1",), in_flight={"i-1": 2})
    assert feed.decode_from_gateway(messages.encode(message)) == message


@given(st.text(max_size=80))
def test_text_that_is_no_message_is_refused(text: str) -> None:
    with pytest.raises(BadMessage):
        messages.decode_from_agent(text)


def test_a_message_of_the_other_direction_is_refused() -> None:
    with pytest.raises(BadMessage):
        messages.decode_from_master(messages.encode(messages.Metrics(at=1.0, load=LOAD)))


@pytest.mark.parametrize("path", ["", "/etc/passwd", "../x", "a/../b", "a//b", "a/./b", "a\\b", "a\0b", "a\nb", "."])
def test_paths_that_could_leave_a_versions_folder_are_refused(path: str) -> None:
    with pytest.raises(BadMessage):
        check_path(path)


@pytest.mark.parametrize("path", ["model.gguf", "a/b/c.safetensors", "ünï.txt", "..hidden"])
def test_ordinary_paths_are_accepted(path: str) -> None:
    assert check_path(path) == path


def test_a_manifest_with_a_path_twice_is_refused() -> None:
    file = ManifestFile(path="a", size_bytes=1, sha256="0" * 64)
    with pytest.raises(BadMessage, match="twice"):
        check_manifest(Manifest(files=(file, file)))


@pytest.mark.parametrize("paths", [("a", "a/b"), ("a/b/c/d", "a/b"), ("b", "a/b", "a/b/c")])
def test_a_manifest_with_a_file_that_is_a_folder_too_is_refused(paths: tuple[str, ...]) -> None:
    files = tuple(ManifestFile(path=path, size_bytes=1, sha256="0" * 64) for path in paths)
    with pytest.raises(BadMessage, match="lies in a folder of that name"):
        check_manifest(Manifest(files=files))
    good = (
        ManifestFile(path="a-b", size_bytes=1, sha256="0" * 64),
        ManifestFile(path="a/b", size_bytes=1, sha256="0" * 64),
    )
    assert check_manifest(Manifest(files=good)).files == good


def test_a_manifests_digest_does_not_depend_on_the_order_of_its_files() -> None:
    one = ManifestFile(path="a", size_bytes=1, sha256="0" * 64)
    two = ManifestFile(path="b", size_bytes=1, sha256="1" * 64)
    assert Manifest(files=(one, two)).digest == Manifest(files=(two, one)).digest


def test_a_spec_hash_changes_with_the_arguments_and_not_with_the_order_of_the_environment() -> None:
    def engine(argv: tuple[str, ...], env: dict[str, str]) -> EngineSpec:
        return EngineSpec(engine="llamacpp", image="i", program="p", argv=argv, env=env)

    base = spec_hash(engine(("-c", "1"), {"A": "1", "B": "2"}))
    assert spec_hash(engine(("-c", "1"), {"B": "2", "A": "1"})) == base
    assert spec_hash(engine(("-c", "2"), {"A": "1", "B": "2"})) != base


def test_only_known_protocol_versions_are_spoken() -> None:
    assert speaks(PROTOCOL)
    assert speaks(OLDEST_PROTOCOL)
    assert not speaks(PROTOCOL + 1)
    assert not speaks(OLDEST_PROTOCOL - 1)

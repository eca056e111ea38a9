"""Files that can run code are found by their content, and never run."""

import bz2
import collections
import gzip
import io
import lzma
import os
import pickle
import pickletools
import resource
import struct
import zipfile
import zlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models_registry.inspect.pickles import Budget, Stream, walk
from models_registry.inspect.scanner import Danger, Finding, scan_file, scan_files
from tests.models_registry.factories import gguf_bytes, safetensors_bytes

FUZZ = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


class Evil:
    def __reduce__(self):
        return os.system, ("touch /tmp/stokehold-was-here",)


EVIL = pickle.dumps(Evil())
TAR_GZ = gzip.compress(b"\0" * 257 + b"ustar\0" + b"\0" * 300, mtime=0)
KIND = pickle.dumps(collections.OrderedDict(weight=[1.0, 2.0]))


def zipped(**members: bytes) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return content.getvalue()


def found(folder: Path, content: bytes, name: str = "model.bin") -> Finding | None:
    (folder / name).write_bytes(content)
    return scan_file(folder / name, name)


def dangerous(folder: Path, content: bytes, name: str = "model.bin") -> tuple[str, ...]:
    finding = found(folder, content, name)
    assert finding is not None
    return finding.dangerous


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_what_a_pickle_would_run_is_named_in_every_protocol(tmp_path, protocol):
    assert dangerous(tmp_path, pickle.dumps(Evil(), protocol)) == ("posix.system",)


@pytest.mark.parametrize(
    "content",
    [
        zipped(**{"archive/data.pkl": EVIL, "archive/data/0": b"\0" * 64}),
        zipped(**{"harmless.txt": EVIL}),
        gzip.compress(EVIL),
        bz2.compress(EVIL),
        lzma.compress(EVIL),
        zlib.compress(EVIL),
        KIND + EVIL,
        KIND + pickle.dumps(Evil(), 0),
        pickle.dumps(1, 0) + pickle.dumps(Evil(), 0),
        EVIL[:-1],
        EVIL[:-1] + b"\xff not a pickle any more",
    ],
    ids=[
        "torch",
        "hidden name",
        "gzip",
        "bz2",
        "xz",
        "joblib",
        "second pickle",
        "old second",
        "old both",
        "cut",
        "broken behind",
    ],
)
def test_it_is_found_wherever_it_is_packed(tmp_path, content):
    assert dangerous(tmp_path, content) == ("posix.system",)


def test_a_name_says_nothing(tmp_path):
    assert dangerous(tmp_path, EVIL, "README.md") == ("posix.system",)
    assert dangerous(tmp_path, zipped(x=EVIL), "tokenizer.json") == ("posix.system",)


def test_checkpoints_of_numbers_are_pickles_that_name_nothing_dangerous(tmp_path):
    finding = found(tmp_path, zipped(**{"a/data.pkl": KIND}))
    assert (finding.kind, finding.imports, finding.dangerous) == (Danger.PICKLE, ("collections.OrderedDict",), ())


@pytest.mark.parametrize(
    "content",
    [
        b"cos\nsystem\n(S'id'\ntR.",
        b"(S'id'\nios\nsystem\n.",
        b"\x80\x04\x8c\x02os\x94\x8c\x06system\x940000h\x00h\x01\x93.",
        b"\x80\x04\x8c\x06system\x8c\x02osq\x00q\x01000h\x01\x8c\x06system\x93.",
        b"\x80\x04\x8c\x01s\x82\x01.",
        b"\x80\x02ctorch._utils\n_rebuild_tensor.__globals__\n.",
        b"\x80\x04\x8c\x0btorch.a.b.c\x8c\x0fos.systemStorage\x93.",
        b"N0cos\nsystem\n.",
    ],
)
def test_disguised_names_are_dangerous_too(tmp_path, content):
    assert dangerous(tmp_path, content)


def test_a_name_that_is_made_while_it_runs_is_unknown_and_dangerous(tmp_path):
    assert dangerous(tmp_path, b"\x80\x04N\x8c\x06system\x93.") == ("?.system",)


def test_numpy_files_run_code_only_when_they_hold_objects(tmp_path):
    def npy(descr: str, data: bytes) -> bytes:
        header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': (1,), }}".encode()
        return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data

    assert dangerous(tmp_path, npy("|O", EVIL), "a.npy") == ("posix.system",)
    assert found(tmp_path, npy("<f4", EVIL), "a.npy") is None
    assert dangerous(tmp_path, zipped(**{"a.npy": npy("|O", EVIL)}), "a.npz") == ("posix.system",)


@pytest.mark.parametrize(
    "content",
    [b"7z\xbc\xaf\x27\x1c....", b"\0" * 257 + b"ustar\0", zipped(a=zipped(b=EVIL)), TAR_GZ],
    ids=["7z", "tar", "zip in a zip", "tar.gz"],
)
def test_an_archive_that_is_not_opened_is_said_to_be_one(tmp_path, content):
    finding = found(tmp_path, content)
    assert (finding.kind, bool(finding.note)) == (Danger.ARCHIVE, True)


def test_ordinary_files_are_no_finding(tmp_path):
    files = {
        "model.gguf": gguf_bytes(),
        "model.safetensors": safetensors_bytes({"w": ("F32", [8], 32)}),
        "config.json": b'{"a": 1}',
        "README.md": b"c is a letter\nand so on\n",
        "formula.txt": b"x^2 + y^2\n",
        "PK.txt": b"PK is a name\n",
        "merges.txt": b"#version: 0.2\n",
        "tokenizer.model": b"\n\x0e\n\x05<unk>\x15\0\0\0\0\x18\x02",
        "rows.npz": zipped(**{"data.txt": b"1 2 3"}),
        "empty.bin": b"",
        "raw.bin": bytes(range(256)) * 64,
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "modeling.py").write_text("import os")
    scan = scan_files(tmp_path, [*files, "modeling.py"])
    assert [(one.path, one.kind) for one in scan.files] == [("modeling.py", Danger.CODE)]
    assert not scan.flagged


def test_a_hostile_length_allocates_nothing(tmp_path):
    for head in (b"\x80\x04\x8d", b"\x80\x05\x8e", b"\x80\x05\x96"):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        finding = found(tmp_path, head + struct.pack("<Q", 2**62) + b"x")
        assert "could not be followed" in finding.note
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000  # KiB


def test_a_pickle_without_an_end_is_left_after_so_many_opcodes(tmp_path):
    budget = Budget(ops=1000)
    walked = walk(Stream(io.BytesIO(b"\x80\x02" + b"N0" * 100_000 + b"."), budget))
    assert not walked.whole
    assert budget.ops < 0


def test_as_many_pickles_as_fit_cost_no_more_than_so_many(tmp_path):
    many = b"".join(b"\x80\x02cm%d\nx\n." % number for number in range(100_000))
    assert len(found(tmp_path, many).imports) == 40


def test_a_bomb_is_left_after_so_many_bytes(tmp_path):
    bomb = gzip.compress(b"\x80\x04\x8e" + struct.pack("<Q", 1 << 40) + b"\0" * (300 << 20), 1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    finding = found(tmp_path, bomb)
    assert finding.note
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 80_000  # KiB


def test_a_directory_that_claims_too_much_is_not_read(tmp_path):
    content = bytearray(zipped(a=EVIL))
    content[-10:-6] = struct.pack("<I", 1 << 31)
    assert "directory" in found(tmp_path, bytes(content)).note


@FUZZ
@given(
    which=st.integers(0, 3),
    flips=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=8),
    cut=st.integers(0, 40),
)
def test_damage_ends_in_an_answer(tmp_path, which, flips, cut):
    content = bytearray([EVIL, zipped(**{"a/data.pkl": EVIL}), gzip.compress(EVIL), zlib.compress(KIND)][which])
    for at, byte in flips:
        content[at % len(content)] = byte
    found(tmp_path, bytes(content[: len(content) - cut]))


@FUZZ
@given(content=st.lists(st.sampled_from([one.code.encode("latin-1") for one in pickletools.opcodes])).map(b"".join))
def test_any_row_of_opcodes_ends_in_an_answer(tmp_path, content):
    found(tmp_path, b"\x80\x04" + content)


@FUZZ
@given(
    module=st.sampled_from(["os", "subprocess", "builtins", "torch", "x.y"]), name=st.sampled_from(["system", "eval"])
)
def test_every_global_that_pickle_itself_writes_is_seen(tmp_path, module, name):
    texts = b"".join(b"\x8c" + bytes([len(one)]) + one.encode() + b"\x94" for one in (module, name))
    assert dangerous(tmp_path, b"\x80\x04" + texts + b"\x93.") == (f"{module}.{name}",)


def test_nothing_was_run():
    assert not Path("/tmp/stokehold-was-here").exists()

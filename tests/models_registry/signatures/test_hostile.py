"""Signatures made to hurt are listed, quickly and with little memory."""

from __future__ import annotations

import json
import tracemalloc

import pytest
from cryptography import x509
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models_registry.inspect.bundles import Unreadable, read_bundle
from models_registry.inspect.certificates import signer_of
from models_registry.inspect.checksums import listed, lone_digest
from models_registry.inspect.claims import Claim, compare
from models_registry.inspect.signatures import MOST_SIGNATURES, Kind, find_signatures
from models_registry.scan import MOST_FILES
from tests.models_registry.signatures.parts import (
    SIGNED_MODEL,
    bundle,
    found,
    found_one,
    model_statement,
    resource,
    sha256,
)
from tests.models_registry.signatures.test_bundles import certificate

FUZZ = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
LITTLE = 24 << 20
ZEROS = "0" * 64
TRUE_BUNDLE = (SIGNED_MODEL / "model.sig").read_bytes()
TRUE_CERTIFICATES = (
    certificate(),
    certificate(x509.RFC822Name("a@b.org"), _8=b"\x0c\x03abc"),
    certificate(x509.OtherName(x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.7"), b"\x0c\x03ann"), _1=b"abc"),
)


def looked_at(folder, name: str, content: bytes):
    (folder / name).write_bytes(content)
    digests = {name: sha256(content), "a": ZEROS}
    tracemalloc.start()
    try:
        (one,) = find_signatures(folder, digests)
        assert tracemalloc.get_traced_memory()[1] < LITTLE
    finally:
        tracemalloc.stop()
    assert len(json.dumps(one.note)) < 300
    return one


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe{",
        b"[" * 5_000_000,
        b'{"a":' * 1_000_000,
        b'{"mediaType":"' + b"\xff" * 100 + b'"}',
        b'{"mediaType":"\\ud800"}',
        b'{"mediaType":1}',
        b'{"mediaType":"application/json"}',
        TRUE_BUNDLE[:-100],
        TRUE_BUNDLE.replace(b"ewog", b"!!!!"),
        bundle({}, dsseEnvelope=None),
        bundle({}, dsseEnvelope={"payload": "e30=", "payloadType": "text/plain"}),
        bundle(b"\xff"),
        bundle(b"[" * 3_000_000),
        bundle(b'{"subject":' + b"[" * 500_000),
        bundle(b'{"subject":[' + b"{}," * 1_000_000 + b"{}]}"),
        bundle(b'{"subject":[' + b'{"digest":{}},' * 300_000 + b"{}]}"),
        bundle({**model_statement(), "predicate": 7}),
        bundle(model_statement({"name": None})),
        bundle(model_statement({"name": "a", "digest": [1]})),
        bundle(model_statement()) + b" " * (8 << 20),
        b"\0" * (20 << 20),
    ],
)
def test_bundles_that_cannot_be_read_are_listed_and_say_why(tmp_path, content):
    one = looked_at(tmp_path, "x.sigstore", content)
    assert one.kind is Kind.SIGSTORE
    assert one.note
    assert one.note.isprintable()
    assert one.covered_count == 0


@pytest.mark.parametrize(
    "statement",
    [
        {"subject": [{"name": "a", "digest": {str(number): "" for number in range(200_000)}}]},
        model_statement(*(resource(f"{number}", "") for number in range(MOST_FILES))),
        model_statement(resource("/" * 1_000_000, ZEROS), resource("../" * 500_000, ZEROS), resource("a\0b", ZEROS)),
        model_statement(*(resource(f"{number}{chr(0x1F600)}{'x' * 90}", "") for number in range(15_000))),
    ],
    ids=["digests", "files", "names", "symbols"],
)
def test_bundles_of_great_size_take_little_memory(tmp_path, statement):
    one = looked_at(tmp_path, "model.sig", bundle(statement))
    assert (one.note, one.differing_count) == ("", 0)


@pytest.mark.parametrize(
    "content",
    [
        b"\n" * (8 << 20),
        b"a" * (8 << 20),
        b"0" * (8 << 20),
        f"{ZEROS}  {'x' * 5_000_000}\n".encode(),
        f"{ZEROS}  {' ' * 5_000_000}x\n".encode(),
        f"SHA256 (a) = {ZEROS}{' ' * 5_000_000}x\n".encode(),
        "".join(f"{number:064x}  {chr(0x1F600) * 999}\n" for number in range(2000)).encode(),
        b"SHA256 (" * 1_000_000,
        b"SHA256 (" + b") = 0" * 1_500_000,
        f"{ZEROS}  \xff\n".encode("latin-1") * 100_000,
        f"{ZEROS}  a\n".encode() * 100_000,
    ],
    ids=[
        "blank",
        "a line",
        "a number",
        "a name",
        "blanks",
        "BSD's blanks",
        "symbols",
        "brackets",
        "closed brackets",
        "no UTF-8",
        "twice",
    ],
)
def test_lists_of_great_size_take_little_memory(tmp_path, content):
    assert looked_at(tmp_path, "SHA256SUMS", content).differing_count == 0


def test_a_million_lines_are_looked_at_as_far_as_a_version_can_have_files(tmp_path):
    lines = b"".join(b"%064x  %x\n" % (number, number) for number in range(1_000_000))
    one = looked_at(tmp_path, "SHA256SUMS", lines)
    assert (one.covered_count, one.differing_count) == (1, 1)
    assert one.missing_count == MOST_FILES - 1
    assert "to its end" in one.note
    assert f"more than {MOST_FILES} files" in looked_at(tmp_path, "SHA256SUMS", lines[: 3 << 20]).note


def test_what_differs_is_named_up_to_a_bound(tmp_path):
    names = [f"{'n' * 240}/{number:03}" for number in range(300)]
    lines = "".join(f"{'1' * 64}  {name}\n" for name in names)
    (tmp_path / "SHA256SUMS").write_text(lines)
    (one,) = find_signatures(tmp_path, {"SHA256SUMS": ZEROS} | dict.fromkeys(names, ZEROS))
    assert (one.differing_count, len(one.differing)) == (300, 20)
    assert max(map(len, one.differing)) == 200


def test_of_many_signatures_those_that_say_the_most_are_kept(tmp_path):
    for number in range(MOST_SIGNATURES + 20):
        (tmp_path / f"{number}.asc").write_text("-----BEGIN PGP SIGNATURE-----")
    (tmp_path / "z.sha256").write_text(ZEROS)
    kept = found(tmp_path)
    assert len(kept) == MOST_SIGNATURES
    assert "z.sha256" in kept


def test_of_many_large_lists_some_are_read(tmp_path):
    for number in range(6):
        (tmp_path / f"{number}.sha256").write_bytes(f"{ZEROS}  1.sha256\n".encode() + b"\n" * (9 << 20))
    read = found(tmp_path)
    assert [one.differing_count for one in read.values()] == [1, 0, 1, 1, 0, 0]
    assert all("to its end" in one.note for one in read.values())


def test_a_small_list_behind_large_ones_is_not_said_to_be_read(tmp_path):
    for number in range(4):
        (tmp_path / f"{number}.sha256").write_bytes(b"\n" * (9 << 20))
    one = found_one(tmp_path, "z.sha256", ZEROS.encode())
    assert (one.covered_count, bool(one.note)) == (0, True)


@FUZZ
@given(st.binary() | st.text().map(str.encode))
def test_no_list_raises(content):
    claims = [*listed(content), Claim("x", lone_digest(content))]
    compare(iter(claims), "sub/SHA256SUMS", {"a": ZEROS})


_names = st.text() | st.sampled_from(["a", "./a", "..", "/", "", "\0", "a\0", "a/.."])


@FUZZ
@given(st.lists(st.builds(Claim, _names, st.text() | st.just(ZEROS) | st.just("1" * 64))))
def test_no_claim_raises(claims):
    said = compare(iter(claims), "SHA256SUMS", {"a": ZEROS})
    assert said.differing_count + said.uncompared_count <= said.covered_count <= 1


_json = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)
_keys = ("certificate", "x509CertificateChain", "publicKey", "hint", "rawBytes", "certificates", "name", "resources")


@FUZZ
@given(_json, st.dictionaries(st.sampled_from(_keys), _json), st.binary())
def test_no_bundle_raises_anything_else(odd, material, payload):
    statement = model_statement() | {"predicate": odd, "subject": []}
    for content in (
        bundle(payload),
        bundle(statement),
        bundle({"subject": odd}),
        bundle(model_statement(), verificationMaterial=material),
        bundle({}, dsseEnvelope=odd),
        bundle({}, dsseEnvelope=None, messageSignature=odd),
        payload,
    ):
        try:
            list(read_bundle(content).claims)
        except Unreadable:
            continue


@FUZZ
@given(st.integers(0, len(TRUE_BUNDLE) - 1), st.binary(max_size=8))
def test_no_damage_of_a_true_bundle_raises(tmp_path, at, damage):
    found_one(tmp_path, "model.sig", TRUE_BUNDLE[:at] + damage + TRUE_BUNDLE[at + len(damage) :])


@FUZZ
@given(st.sampled_from(TRUE_CERTIFICATES), st.integers(0, 5000), st.binary(max_size=4))
def test_no_damage_of_a_certificate_raises(der, at, damage):
    at %= len(der)
    assert isinstance(signer_of(der[:at] + damage + der[at + len(damage) :]), str)

"""Sigstore bundles: whom they name, which files, and which of these differ."""

from __future__ import annotations

import base64
import datetime as dt
import shutil

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from models_registry.inspect.signatures import Kind, Signature
from tests.models_registry.signatures.parts import (
    BUNDLES,
    KEY,
    bundle,
    found,
    found_one,
    model_statement,
    resource,
    sha256,
    signed_model,
)

FULCIO = "1.3.6.1.4.1.57264.1"
ISSUER = "https://accounts.example.org"


def certificate(*names: x509.GeneralName, subject: str = "ann", **extensions: bytes) -> bytes:
    """`extensions`: values of Fulcio's by the last number, e.g. `_8`."""
    key = generate_private_key(SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)])
    start = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), 1)
        .not_valid_before(start)
        .not_valid_after(start + dt.timedelta(minutes=10))
    )
    if names:
        made = made.add_extension(x509.SubjectAlternativeName(names), critical=True)
    for number, value in extensions.items():
        oid = x509.ObjectIdentifier(f"{FULCIO}.{number.strip('_')}")
        made = made.add_extension(x509.UnrecognizedExtension(oid, value), critical=False)
    return made.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


def signer_in(folder, der: bytes) -> str:
    material = {"certificate": {"rawBytes": base64.b64encode(der).decode()}}
    return found_one(folder, "model.sig", bundle(model_statement(), verificationMaterial=material)).signer


def test_a_signed_model_that_is_whole_agrees_with_its_signature(tmp_path):
    expected = Signature("model.sig", Kind.MODEL_SIGNING, signer=KEY, covered_count=3)
    assert found(signed_model(tmp_path)) == {"model.sig": expected}


def test_a_file_that_was_changed_is_named(tmp_path):
    root = signed_model(tmp_path)
    (root / "weights.txt").write_text("others")
    (root / "config.json").unlink()
    (root / "README.md").write_text("of nobody's signature")
    one = found(root)["model.sig"]
    assert (one.covered_count, one.differing, one.differing_count) == (2, ("weights.txt",), 1)
    assert one.missing_count == 1


def test_names_are_of_the_folder_of_the_signature(tmp_path):
    signed_model(tmp_path)
    (tmp_path / "weights.txt").write_text("another file of that name")
    one = found(tmp_path)["signed/model.sig"]
    assert (one.covered_count, one.differing_count, one.missing_count) == (3, 0, 0)


def test_the_certificate_tells_the_signer(tmp_path):
    root = signed_model(tmp_path)
    shutil.copy(BUNDLES / "certificate.sig", root / "model.sig")
    one = found(root)["model.sig"]
    assert one.signer == f"signer@example.org ({ISSUER})"
    assert (one.covered_count, one.differing_count) == (3, 0)


def test_a_model_that_was_signed_in_parts_is_not_compared(tmp_path):
    root = signed_model(tmp_path)
    shutil.copy(BUNDLES / "parts.sig", root / "model.sig")
    one = found(root)["model.sig"]
    assert (one.covered_count, one.uncompared_count, one.differing_count, one.missing_count) == (3, 3, 0, 0)


@pytest.mark.parametrize(("content", "differing"), [(None, ()), ("others", ("weights.txt",))])
def test_a_file_that_was_signed_alone_is_found_by_the_statement_s_subject(tmp_path, content, differing):
    root = signed_model(tmp_path)
    shutil.copy(BUNDLES / "one_file.sig", root / "model.sig")
    if content:
        (root / "weights.txt").write_text(content)
    one = found(root)["model.sig"]
    assert (one.covered_count, one.differing) == (1, differing)


def test_subjects_carry_the_digests_of_older_statements(tmp_path):
    (tmp_path / "a").write_text("a")
    subjects = [
        {"name": "a", "digest": {"sha256": sha256(b"a")}},
        {"name": "b", "digest": {"sha512": "0" * 128}},
        {"digest": {"sha256": "0" * 64}},
    ]
    before = {"predicateType": "https://model_signing/Digests/v0.1", "subject": subjects}
    one = found_one(tmp_path, "model.sig", bundle(before))
    assert (one.kind, one.covered_count, one.differing_count, one.missing_count) == (Kind.MODEL_SIGNING, 1, 0, 1)
    one = found_one(tmp_path, "provenance.json", bundle({"predicateType": "https://slsa.dev/x", "subject": subjects}))
    assert (one.kind, one.covered_count) == (Kind.SIGSTORE, 1)


@pytest.mark.parametrize(
    ("algorithm", "content", "differs", "uncompared"),
    [("SHA2_256", b"a", 0, 0), ("SHA2_256", b"b", 1, 0), ("SHA2_512", b"b", 0, 1)],
)
def test_a_bundle_beside_a_file_is_of_that_file(tmp_path, algorithm, content, differs, uncompared):
    (tmp_path / "a.bin").write_bytes(b"a")
    digest = base64.b64encode(bytes.fromhex(sha256(content))).decode()
    message = {"messageDigest": {"algorithm": algorithm, "digest": digest}, "signature": ""}
    one = found_one(tmp_path, "a.bin.sigstore.json", bundle({}, dsseEnvelope=None, messageSignature=message))
    assert (one.kind, one.signed_file, one.covered_count) == (Kind.SIGSTORE, "a.bin", 1)
    assert (one.differing_count, one.uncompared_count) == (differs, uncompared)


def test_other_algorithms_are_counted_and_not_compared(tmp_path):
    for name in "abcd":
        (tmp_path / name).write_text(name)
    statement = model_statement(
        resource("a", "0" * 64, "blake2b"),
        resource("b", "0" * 128, "sha512"),
        resource("c", "no digest"),
        resource("d", sha256(b"d").upper()),
    )
    one = found_one(tmp_path, "model.sig", bundle(statement))
    assert (one.covered_count, one.uncompared_count, one.differing_count) == (4, 3, 0)


@pytest.mark.parametrize(
    ("names", "extensions", "signer"),
    [
        ([x509.RFC822Name("a@b.org")], {"_8": b"\x0c\x1c" + ISSUER.encode()}, f"a@b.org ({ISSUER})"),
        ([x509.UniformResourceIdentifier("https://ci/x")], {"_1": ISSUER.encode()}, f"https://ci/x ({ISSUER})"),
        ([x509.DNSName("ci.example.org")], {}, "ci.example.org"),
        ([x509.OtherName(x509.ObjectIdentifier(f"{FULCIO}.7"), b"\x0c\x03ann")], {}, "ann"),
        ([], {}, "CN=ann"),
        ([x509.RFC822Name("a@b.org")], {"_8": b"\x02\x01\x01"}, "a@b.org"),
        ([x509.RFC822Name("a@b.org")], {"_8": b"\x0c"}, "a@b.org"),
        ([x509.RFC822Name("a@b.org")], {"_8": b"\x0c\x81\x02a\xff"}, "a@b.org (a\ufffd)"),
    ],
    ids=["person", "workflow", "host", "user", "subject", "odd issuer", "cut issuer", "issuer of odd bytes"],
)
def test_signers_of_every_kind(tmp_path, names, extensions, signer):
    assert signer_in(tmp_path, certificate(*names, **extensions)) == signer


@pytest.mark.parametrize("der", [b"", b"0", b"\0" * 100_000, certificate(x509.RFC822Name("a@b.org"))[:-40]])
def test_a_certificate_that_cannot_be_read_names_nobody(tmp_path, der):
    assert signer_in(tmp_path, der) == ""


def test_a_signer_is_shown_on_one_short_line(tmp_path):
    signer = signer_in(tmp_path, certificate(subject="a\n\u202e" + "b" * 50))
    assert signer.isprintable()
    material = {"publicKey": {"hint": "h\0" * 10_000}}
    one = found_one(tmp_path, "model.sig", bundle(model_statement(), verificationMaterial=material))
    assert (len(one.signer) <= 200, one.signer.isprintable()) == (True, True)

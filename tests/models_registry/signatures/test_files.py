"""Checksum lists, and signatures beside files."""

from __future__ import annotations

import base64

import pytest

from models_registry.inspect.signatures import Kind, Signature
from tests.models_registry.signatures.parts import found, found_one, sha256

A, B = sha256(b"a"), sha256(b"b")
OPENPGP = base64.b64decode("iHUEABYIAB0WIQRnlrvItcP1VKnNP02QVGteqQfbQAUCaw1xeAAKCRCQVGteqQfbQKkj")
CMS = bytes.fromhex("3082038306092a864886f70d010702a0820374308203700201")
SIGNED_TEXT = f"""-----BEGIN PGP SIGNED MESSAGE-----
Hash: SHA256

{A}  a
{B}  b
- {A}  c
-----BEGIN PGP SIGNATURE-----

iHQEARYIAB0WIQRnlrvItcP1VKnNP02QVGteqQfbQAUCaw1xeAAKCRCQVGteqQfb
-----END PGP SIGNATURE-----
"""


@pytest.fixture
def root(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    return tmp_path


@pytest.mark.parametrize("name", ["SHA256SUMS", "sha256sums.txt", "sha256sum.txt", "model.sha256", "x.sha256sum"])
@pytest.mark.parametrize(
    "text",
    [
        f"{A}  a\n{B}  b\n",
        f"{A} *a\r\n{B} *b\r\n",
        f"\ufeff{A}\ta\n\n# by hand\n{B.upper()} ./b",
        f"SHA256 (a) = {A}\nSHA2-256(b)= {B}\n",
    ],
    ids=["text", "binary", "by hand", "BSD and OpenSSL"],
)
def test_a_list_that_agrees(root, name, text):
    assert found_one(root, name, text.encode()) == Signature(name, Kind.CHECKSUMS, covered_count=2)


def test_a_list_that_does_not_agree(root):
    text = f"{B}  a\n{B}  b\n{A}  gone\n{A}  ../a\n{A}  /a\n{A}  b/\0\n"
    one = found_one(root, "SHA256SUMS", text.encode())
    assert (one.covered_count, one.differing, one.differing_count, one.missing_count) == (2, ("a",), 1, 4)


def test_a_file_that_is_named_twice_counts_once_and_differs_if_either_does(root):
    one = found_one(root, "SHA256SUMS", f"{B}  a\n{A}  a\n{A}  gone\n{B}  gone\n".encode())
    assert (one.covered_count, one.differing_count, one.missing_count) == (1, 1, 1)


def test_other_hashes_are_not_compared(root):
    text = f"{'0' * 32}  a\nSHA512 (b) = {'0' * 128}\nMD5 (b) = {'0' * 32}\n"
    one = found_one(root, "SHA256SUMS", text.encode())
    assert (one.covered_count, one.uncompared_count, one.differing_count) == (2, 2, 0)


def test_names_that_sha256sum_escapes(root):
    (root / "a\\b").write_text("b")
    assert found_one(root, "SHA256SUMS", f"\\{B}  a\\\\b\n".encode()).covered_count == 1


def test_a_list_says_nothing_of_itself(root):
    one = found_one(root, "SHA256SUMS", f"{sha256(b'')}  SHA256SUMS\n{A}  a\n".encode())
    assert (one.covered_count, one.differing_count, one.missing_count) == (1, 0, 0)


@pytest.mark.parametrize(("text", "differing"), [(A, ()), (f" {B}\n", ("a",))])
def test_a_lone_hash_is_of_the_file_beside_it(root, text, differing):
    one = found_one(root, "a.sha256", text.encode())
    assert (one.signed_file, one.covered_count, one.differing) == ("a", 1, differing)


def test_a_list_is_of_its_own_folder(root):
    (root / "sub").mkdir()
    (root / "sub" / "a").write_text("another one")
    (root / "sub" / "SHA256SUMS").write_text(f"{A}  ../a\n{sha256(b'another one')}  a\n{B}  b\n")
    one = found(root)["sub/SHA256SUMS"]
    assert (one.covered_count, one.differing_count, one.missing_count) == (2, 0, 1)


def test_a_list_that_is_signed_as_text_is_compared(root):
    one = found_one(root, "SHA256SUMS.asc", SIGNED_TEXT.encode())
    assert (one.kind, one.signed_file, one.covered_count, one.missing_count) == (Kind.OPENPGP, "", 2, 1)


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("a.asc", b"-----BEGIN PGP SIGNATURE-----\n\niHUEABYI\n", Kind.OPENPGP),
        ("a.sig", OPENPGP, Kind.OPENPGP),
        ("a.gpg", OPENPGP, Kind.OPENPGP),
        ("a.minisig", b"untrusted comment: signature from minisign secret key\nRUQ\n", Kind.MINISIGN),
        ("a.sig", b"-----BEGIN SSH SIGNATURE-----\nU1NIU0lH\n", Kind.SSH),
        ("a.p7s", CMS, Kind.X509),
        ("a.p7s", b"-----BEGIN CMS-----\nMIIDhAYJ\n", Kind.X509),
        ("a.sig", b"-----BEGIN PKCS7-----\nMIIDhAYJ\n", Kind.X509),
        ("a.sig", b"MEUCIQCzKd2J2uymtk1v", Kind.UNKNOWN),
    ],
)
def test_a_signature_beside_a_file(root, name, content, kind):
    expected = Signature(name, kind, signed_file="a", covered_count=1, uncompared_count=1)
    assert found_one(root, name, content) == expected
    (root / "a").unlink()
    assert found(root)[name] == Signature(name, kind, signed_file="a", missing_count=1)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("key.asc", b"-----BEGIN PGP PUBLIC KEY BLOCK-----\n"),
        ("secret.gpg", b"\x85\x01\x0c\x03"),
        ("config.json", b'{"sha256": 1}'),
        ("README.md", f"{A}  a\n".encode()),
        ("sha256.py", b"import hashlib"),
    ],
)
def test_other_files_are_not_listed(root, name, content):
    (root / name).write_bytes(content)
    assert found(root) == {}

"""Who a certificate says has signed; it is not verified.

Source: docs/oid-info.md of sigstore/fulcio.
"""

from __future__ import annotations

from cryptography import x509
from cryptography.x509.oid import ExtensionOID

_MOST_BYTES = 64 << 10
_ISSUER_BEFORE = x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.1")  # a bare text
_USER_NAME = x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.7")
_ISSUER = x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.8")  # a UTF8String in DER
_UTF8_STRING = 0x0C
_DAMAGED = (
    ValueError,
    TypeError,
    OverflowError,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)


def signer_of(der: bytes) -> str:
    """The identity, and in brackets who vouched for it (OpenID Connect); empty: the certificate cannot be read."""
    if len(der) > _MOST_BYTES:
        return ""
    try:
        certificate = x509.load_der_x509_certificate(der)
        values = {one.oid: one.value for one in certificate.extensions}
        name = _alternative_name(values.get(ExtensionOID.SUBJECT_ALTERNATIVE_NAME))
        issuer = _bytes_of(values.get(_ISSUER))
        told_by = _utf8_string(issuer) if issuer else _bytes_of(values.get(_ISSUER_BEFORE)).decode(errors="replace")
        signer = name or certificate.subject.rfc4514_string()
    except _DAMAGED:
        return ""
    return f"{signer} ({told_by})" if told_by else signer


def _alternative_name(names: object) -> str:
    """E-mail addresses are of people, URIs of workflows, and a name of another kind of a user of one's own Fulcio."""
    if not isinstance(names, x509.SubjectAlternativeName):
        return ""
    for one in names:
        if isinstance(one, x509.RFC822Name | x509.UniformResourceIdentifier | x509.DNSName):
            return one.value
        if isinstance(one, x509.OtherName) and one.type_id == _USER_NAME:
            return _utf8_string(one.value)
    return ""


def _bytes_of(value: object) -> bytes:
    return value.value if isinstance(value, x509.UnrecognizedExtension) else b""


def _utf8_string(der: bytes) -> str:
    """Of DER; empty: it is something else. Source: X.690, 8.1.3."""
    if len(der) < 2 or der[0] != _UTF8_STRING:
        return ""
    length_bytes = der[1] & 0x7F if der[1] & 0x80 else 0
    return der[2 + length_bytes :].decode(errors="replace")

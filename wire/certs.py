"""The built-in CA: key pairs, certificates and fingerprints, PEM in and out. RFC 5280 extensions (SKI, AKI, key usage).

Keys are Ed25519 for signing states and tokens, ECDSA P-256 for TLS.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import ipaddress
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_Private = Ed25519PrivateKey | ec.EllipticCurvePrivateKey
_BACKDATE = dt.timedelta(minutes=10)  # clocks of joining machines may be a little behind


@dataclass(frozen=True)
class KeyPair:
    """PEM of a private key (PKCS 8) and of its public half."""

    private_pem: str
    public_pem: str


def make_signing_key() -> KeyPair:
    """Ed25519: states, tokens."""
    return _pair(Ed25519PrivateKey.generate())


def make_tls_key() -> KeyPair:
    """ECDSA P-256: certificates, because every TLS stack accepts it."""
    return _pair(ec.generate_private_key(ec.SECP256R1()))


def _pair(key: _Private) -> KeyPair:
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return KeyPair(private.decode(), public.decode())


def load_signing_key(pem: str) -> Ed25519PrivateKey:
    """Raises ValueError when it is not an Ed25519 private key."""
    key = serialization.load_pem_private_key(pem.encode(), password=None)
    if not isinstance(key, Ed25519PrivateKey):
        raise ValueError("not an Ed25519 private key")
    return key


def load_verify_key(pem: str) -> Ed25519PublicKey:
    """Raises ValueError when it is not an Ed25519 public key."""
    key = serialization.load_pem_public_key(pem.encode())
    if not isinstance(key, Ed25519PublicKey):
        raise ValueError("not an Ed25519 public key")
    return key


def make_ca(common_name: str, now: dt.datetime, days: int = 3650) -> tuple[str, str]:
    """(private key PEM, certificate PEM) of a new CA that signs leaf certificates only."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    ski = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATE)
        .not_valid_after(now + dt.timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(ca=True), critical=True)
        .add_extension(ski, critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(ski), critical=False)
        .sign(key, hashes.SHA256())
    )
    return _pair(key).private_pem, _certificate_pem(certificate)


def issue(
    ca_key_pem: str,
    ca_pem: str,
    public_key_pem: str,
    *,
    common_name: str,
    role: str,
    names: tuple[str, ...],
    now: dt.datetime,
    days: int = 825,
) -> str:
    """Certificate PEM for a node's key, signed by the CA; good as TLS server and client.

    `names` (DNS names, `*.x` wildcards and IP addresses) become SANs; `role` is the subject's organizational unit,
    which relays look at.
    """
    ca_key = serialization.load_pem_private_key(ca_key_pem.encode(), password=None)
    if not isinstance(ca_key, ec.EllipticCurvePrivateKey):
        raise ValueError("the CA's key is not an EC key")
    ca = x509.load_pem_x509_certificate(ca_pem.encode())
    key = serialization.load_pem_public_key(public_key_pem.encode())
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise ValueError("a node's TLS key must be an EC key")
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, role),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name[:64]),
        ]
    )
    issuer_ski = ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(ca.subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATE)
        .not_valid_after(min(now + dt.timedelta(days=days), ca.not_valid_after_utc))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(ca=False), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
        )
        .add_extension(x509.SubjectAlternativeName([_san(name) for name in names]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer_ski), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    return _certificate_pem(certificate)


def fingerprint(certificate_pem: str) -> str:
    """sha256 of the certificate's DER, hex: what a join token pins."""
    certificate = x509.load_pem_x509_certificate(certificate_pem.encode())
    return hashlib.sha256(certificate.public_bytes(serialization.Encoding.DER)).hexdigest()


def serial(certificate_pem: str) -> str:
    """Serial number, upper-case hex of even length: as `ssl.SSLSocket.getpeercert()` gives it."""
    number = x509.load_pem_x509_certificate(certificate_pem.encode()).serial_number
    return number.to_bytes((number.bit_length() + 7) // 8).hex().upper()


def expires_at(certificate_pem: str) -> dt.datetime:
    """End of validity, aware UTC."""
    return x509.load_pem_x509_certificate(certificate_pem.encode()).not_valid_after_utc


def relay_name(instance_id: str, server_id: str) -> str:
    """Name (SNI) by which a relay knows an instance; the agent's certificate covers it by a wildcard."""
    return f"{instance_id}.{server_id}.relay.stokehold.internal"


def relay_wildcard(server_id: str) -> str:
    return f"*.{server_id}.relay.stokehold.internal"


def _san(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _key_usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )


def _certificate_pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()

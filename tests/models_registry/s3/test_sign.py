"""Our signatures, beside those that AWS publishes and those that its own library makes."""

from __future__ import annotations

import datetime as dt

import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.compat import HTTPHeaders
from botocore.credentials import Credentials as TheirCredentials
from hypothesis import given
from hypothesis import strategies as st

from models_registry.errors import BadSource
from models_registry.s3.address import Bucket, bucket_of
from models_registry.s3.sign import Credentials, object_url, signed_headers

NOW = dt.datetime(2013, 5, 24, tzinfo=dt.UTC)
PUBLISHED = Credentials("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")


def test_the_list_of_the_reference_has_the_signature_that_is_printed_there() -> None:
    """Amazon S3 API reference, "Example: GET Bucket (List Objects)"."""
    headers = signed_headers("https://examplebucket.s3.amazonaws.com/?max-keys=2&prefix=J", PUBLISHED, "us-east-1", NOW)
    assert headers["Authorization"].endswith(
        "Signature=34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"
    )
    assert "wJalr" not in str(headers)


def theirs(url: str, credentials: Credentials, region: str) -> str:
    """By botocore, at the same instant."""
    ours = signed_headers(url, credentials, region, NOW)
    auth = S3SigV4Auth(
        TheirCredentials(credentials.access_key, credentials.secret_key, credentials.session_token or None),
        "s3",
        region,
    )
    request = AWSRequest("GET", url)
    for name, value in ours.items():
        if name != "Authorization":
            request.headers[name] = value
    request.headers["host"] = url.split("/")[2]
    request.headers["X-Amz-Content-SHA256"] = ours["x-amz-content-sha256"]
    request.context["timestamp"] = ours["x-amz-date"]
    del request.headers["X-Amz-Content-SHA256"]
    request.headers["x-amz-content-sha256"] = ours["x-amz-content-sha256"]
    assert isinstance(request.headers, HTTPHeaders)
    return auth.signature(auth.string_to_sign(request, auth.canonical_request(request)), request)


@given(
    st.text(st.characters(blacklist_categories=("Cs", "Cc")), min_size=1, max_size=60),
    st.text(st.characters(blacklist_categories=("Cs", "Cc")), max_size=40),
    st.sampled_from(["", "session/token=="]),
)
def test_any_key_and_prefix_is_signed_as_amazons_own_library_does(key: str, prefix: str, session: str) -> None:
    credentials = Credentials("AKIDEXAMPLE", "secret/+=", session)
    for url in (
        object_url("https://s3.eu-central-1.amazonaws.com", "bucket", key),
        object_url("http://10.0.0.5:9000", "bucket", query={"prefix": prefix, "list-type": "2"}),
    ):
        signature = signed_headers(url, credentials, "eu-central-1", NOW)["Authorization"].rpartition("=")[2]
        assert signature == theirs(url, credentials, "eu-central-1")


def test_addresses_are_read() -> None:
    assert bucket_of("s3://models/a/b") == Bucket("https://s3.us-east-1.amazonaws.com", "us-east-1", "models", "a/b")
    assert bucket_of("s3://models", "http://MinIO:9000/", "eu-central-1").endpoint == "http://minio:9000"


@pytest.mark.parametrize(
    ("address", "endpoint", "region"),
    [
        ("https://models/x", "", ""),
        ("s3://", "", ""),
        ("s3:///x", "", ""),
        ("s3://a?b/x", "", ""),
        ("s3://models/x", "minio:9000", ""),
        ("s3://models/x", "http://me:pw@minio:9000", ""),
        ("s3://models/x", "http://minio:9000/path", ""),
        ("s3://models/x", "", "eu/central\n"),
    ],
)
def test_what_is_no_bucket_is_said(address: str, endpoint: str, region: str) -> None:
    with pytest.raises(BadSource):
        bucket_of(address, endpoint, region)

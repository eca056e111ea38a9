"""A real S3 server (moto) in a process of its own, which checks signatures; boto3 is who fills it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import boto3
import requests

from tests.ports import free_port
from tests.waiting import wait_for

ALL = '{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}'


@dataclass
class S3Server:
    """`access_key` may do everything; who has none is refused once `guard` was called."""

    url: str
    access_key: str = ""
    secret_key: str = ""

    def client(self, service: str = "s3") -> Any:
        return boto3.client(
            service,
            endpoint_url=self.url,
            region_name="us-east-1",
            aws_access_key_id=self.access_key or "any",
            aws_secret_access_key=self.secret_key or "thing",
        )

    def bucket(self, name: str, objects: dict[str, bytes]) -> None:
        self.client().create_bucket(Bucket=name)
        self.put(name, objects)

    def put(self, bucket: str, objects: dict[str, bytes]) -> None:
        for key, content in objects.items():
            self.client().put_object(Bucket=bucket, Key=key, Body=content)

    def guard(self) -> None:
        """From now on every request must be signed, with the keys of an account that is made here."""
        iam = self.client("iam")
        iam.create_user(UserName="reader")
        iam.put_user_policy(UserName="reader", PolicyName="all", PolicyDocument=ALL)
        made = iam.create_access_key(UserName="reader")["AccessKey"]
        self.access_key, self.secret_key = made["AccessKeyId"], made["SecretAccessKey"]
        requests.post(f"{self.url}/moto-api/reset-auth", data="0", timeout=10).raise_for_status()


@contextmanager
def serving_s3() -> Iterator[S3Server]:
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=dict(os.environ))
    server = S3Server(f"http://127.0.0.1:{port}")
    try:
        wait_for(lambda: _answers(server.url, process), within_s=60, what="the S3 server")
        yield server
    finally:
        process.terminate()
        process.wait(10)


def _answers(url: str, process: subprocess.Popen[bytes]) -> bool:
    assert process.poll() is None, "the S3 server has ended"
    try:
        return requests.get(f"{url}/moto-api/data.json", timeout=5).ok
    except requests.ConnectionError:
        return False

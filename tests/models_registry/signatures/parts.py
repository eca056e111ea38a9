"""What the tests of signatures share.

`signed_model/` was signed by `model_signing` 1.1.1 with a key (`model.sig`); `bundles/` has what it made of the same
model with a certificate, in parts of 16 bytes, and of one file alone. The keys are gone.
"""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from models_registry.inspect.bundles import MEDIA_TYPE
from models_registry.inspect.signatures import Signature, find_signatures

HERE = Path(__file__).parent
SIGNED_MODEL, BUNDLES = HERE / "signed_model", HERE / "bundles"
KEY = "key f35772129e19c83dc5d694a4068164d8427606e52a2861778e761414ebe3a49d"


def signed_model(folder: Path) -> Path:
    return Path(shutil.copytree(SIGNED_MODEL, folder / "signed"))


def digests_of(root: Path) -> dict[str, str]:
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*")
        if path.is_file()
    }


def found(root: Path) -> dict[str, Signature]:
    return {one.path: one for one in find_signatures(root, digests_of(root))}


def found_one(root: Path, name: str, content: bytes) -> Signature:
    (root / name).write_bytes(content)
    return found(root)[name]


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def bundle(statement: Any, **more: Any) -> bytes:
    """A bundle around a statement, which may be bytes that are none."""
    payload = statement if isinstance(statement, bytes) else json.dumps(statement).encode()
    envelope = {"payload": base64.b64encode(payload).decode(), "payloadType": "application/vnd.in-toto+json"}
    return json.dumps({"mediaType": f"{MEDIA_TYPE}.v0.3+json", "dsseEnvelope": envelope, **more}).encode()


def model_statement(*resources: Any) -> dict[str, Any]:
    return {
        "predicateType": "https://model_signing/signature/v1.0",
        "subject": [{"name": "m", "digest": {"sha256": "0" * 64}}],
        "predicate": {"resources": list(resources)},
    }


def resource(name: str, digest: str, algorithm: str = "sha256") -> dict[str, str]:
    return {"name": name, "digest": digest, "algorithm": algorithm}

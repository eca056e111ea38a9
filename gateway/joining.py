"""Join a master: fetch its CA, check it against the token, send our public keys, keep the identity."""

from __future__ import annotations

import ssl
from pathlib import Path

import aiohttp
import msgspec

from gateway.feed import MASTER_NAME
from gateway.home import Home
from wire import join
from wire.errors import BadToken, WireError
from wire.join import NodeIdentity
from wire.messages import JOIN_CA_PATH, JOIN_PATH, JoinReply
from wire.tokens import parse_join_token

_TIMEOUT = aiohttp.ClientTimeout(total=20)


class JoinFailed(Exception):
    """The gateway did not join; `message` and `remedy` are for the operator."""

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy


async def join_master(
    home: Home, master_url: str, token_text: str, name: str, addresses: tuple[str, ...]
) -> NodeIdentity:
    """Raises JoinFailed. Nothing is written unless it worked."""
    master_url = master_url.rstrip("/")
    if not master_url.startswith("https://"):
        raise JoinFailed(f"{master_url!r} is not an https:// address.", "Give the address of the master's link port.")
    try:
        token = parse_join_token(read_token(token_text))
        ca_pem = await _fetch_ca(master_url)
        join.check_ca(token, ca_pem)
        keys = join.make_keys()
        request = join.make_request(token, keys, name=name, role="gateway", addresses=addresses)
        reply = await _send(master_url, ca_pem, msgspec.json.encode(request))
    except WireError as error:
        raise JoinFailed(error.message, error.remedy) from error
    except msgspec.DecodeError as error:
        raise JoinFailed(
            f"The answer of {master_url} was not understood: {error}.", "Are master and gateway of one release?"
        ) from error
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise JoinFailed(
            f"The master at {master_url} could not be reached: {str(error) or type(error).__name__}.",
            "Check the address and that its link port (8443) is open to this machine.",
        ) from error
    identity = join.make_identity(keys, reply, role="gateway", master_url=master_url)
    home.save_identity(identity)
    return identity


def read_token(text: str) -> str:
    """`text`, or what is in the file that `@FILE` names: other people of a machine see arguments. Raises JoinFailed."""
    if not text.startswith("@"):
        return text
    try:
        return Path(text[1:]).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise JoinFailed(f"The token file {text[1:]} cannot be read: {error}.", "Check the path.") from error


async def _fetch_ca(master_url: str) -> str:
    """Unverified on purpose: the token's fingerprint decides whether it is the right CA."""
    async with (
        aiohttp.ClientSession(timeout=_TIMEOUT, trust_env=False) as session,
        session.get(master_url + JOIN_CA_PATH, ssl=False, allow_redirects=False) as response,
    ):
        if response.status != 200:
            raise BadToken(
                f"{master_url} answered {response.status} when asked for its CA.",
                remedy="Check that this is the address of a Stokehold master's link port.",
            )
        return await response.text(errors="replace")


async def _send(master_url: str, ca_pem: str, body: bytes) -> JoinReply:
    tls = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cadata=ca_pem)
    async with (
        aiohttp.ClientSession(timeout=_TIMEOUT, trust_env=False) as session,
        session.post(
            master_url + JOIN_PATH,
            data=body,
            headers={"content-type": "application/json"},
            ssl=tls,
            server_hostname=MASTER_NAME,
            allow_redirects=False,  # the token is for this master
        ) as response,
    ):
        answer = await response.read()
        if response.status == 201:
            return msgspec.json.decode(answer, type=JoinReply)
    raise JoinFailed(*_problem(response.status, answer))


def _problem(status: int, body: bytes) -> tuple[str, str]:
    """(message, remedy) of an RFC 9457 problem."""
    try:
        data = msgspec.json.decode(body)
    except msgspec.DecodeError:
        data = {}
    detail = data.get("detail") if isinstance(data, dict) else None
    remedy = data.get("remedy") if isinstance(data, dict) else None
    return (
        str(detail or f"The master refused to let this gateway join ({status})."),
        str(remedy or "Make a new join token for a gateway in the admin."),
    )

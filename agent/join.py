"""Join a server to its master: the transport for `wire.join`."""

from __future__ import annotations

import ssl
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import msgspec
import structlog

from agent.errors import JoinFailed
from agent.home import AgentHome, write_whole
from wire.errors import WireError
from wire.join import NodeIdentity, check_ca, make_identity, make_keys, make_request
from wire.messages import JOIN_CA_PATH, JOIN_PATH, JoinReply
from wire.tokens import parse_join_token

MASTER_NAME = "master.stokehold.internal"
"""Name in the master's certificate that nodes verify, whatever address they reach it by."""

log = structlog.get_logger(__name__)
_TIMEOUT = aiohttp.ClientTimeout(total=20, connect=8)


def pinned_context(ca_pem: str) -> ssl.SSLContext:
    """TLS that trusts this CA and no other."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_verify_locations(cadata=ca_pem)
    return context


def check_master_url(url: str) -> str:
    """`url` without a trailing slash, when it is an https address that can be a master's. Raises JoinFailed."""
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        port = -1
    if parts.scheme != "https" or not parts.hostname or port == -1 or parts.path not in ("", "/") or parts.query:
        raise JoinFailed(f"{url!r} is not an address of a master", remedy="Give it as https://HOST:8443.")
    if parts.hostname.rstrip(".").endswith(".stokehold.internal"):
        raise JoinFailed(f"{parts.hostname} is a name inside certificates, not an address", remedy="Use its real name.")
    return url.rstrip("/")


async def join(
    home: AgentHome, *, master_url: str, token_text: str, name: str, addresses: tuple[str, ...]
) -> NodeIdentity:
    """Make keys, get a certificate for them, and keep the identity in `home`.

    Raises:
        JoinFailed: with a sentence for the operator; nothing was kept.
    """
    master_url = check_master_url(master_url)
    try:
        token = parse_join_token(token_text)
        async with aiohttp.ClientSession(timeout=_TIMEOUT) as session:
            ca_pem = await _fetch_ca(session, master_url)
            check_ca(token, ca_pem)
            keys = make_keys()
            request = make_request(token, keys, name=name, role="agent", addresses=addresses)
            async with session.post(
                master_url + JOIN_PATH,
                data=msgspec.json.encode(request),
                headers={"Content-Type": "application/json"},
                ssl=pinned_context(ca_pem),
                server_hostname=MASTER_NAME,
                allow_redirects=False,
            ) as response:
                body = await response.read()
                if response.status not in (200, 201):
                    raise _refusal(response.status, body)
        reply = msgspec.json.decode(body, type=JoinReply)
        check_ca(token, reply.ca_pem)
    except WireError as error:
        raise JoinFailed(error.message, remedy=error.remedy) from error
    except msgspec.DecodeError as error:
        raise JoinFailed(f"the master's answer was not understood: {error}") from error
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise JoinFailed(
            f"{master_url} could not be reached: {error or type(error).__name__}",
            remedy="Check the address, the port and the firewall; is the master up?",
            retry=True,
        ) from error
    identity = make_identity(keys, reply, role="agent", master_url=master_url)
    if addresses:
        write_whole(home.addresses_file, msgspec.json.encode(addresses))
    home.save_identity(identity)
    log.info("agent.joined", server=identity.node_id, name=identity.name, master=master_url)
    return identity


async def _fetch_ca(session: aiohttp.ClientSession, master_url: str) -> str:
    """The CA's certificate over an unverified connection: worth nothing until `check_ca` has compared it."""
    async with session.get(master_url + JOIN_CA_PATH, ssl=False, allow_redirects=False) as response:
        if response.status != 200:
            raise JoinFailed(
                f"{master_url} answered {response.status} to the question for its certificate",
                remedy="Is this the address of a Stokehold master's TLS port (8443)?",
            )
        return await response.text(errors="replace")


class _Problem(msgspec.Struct):
    detail: str = ""
    title: str = ""
    remedy: str | None = None


def _refusal(status: int, body: bytes) -> JoinFailed:
    try:
        problem = msgspec.json.decode(body, type=_Problem)
    except msgspec.DecodeError:
        problem = _Problem()
    message = problem.detail or problem.title or f"the master answered {status}"
    return JoinFailed(message, remedy=problem.remedy, retry=status >= 500)


def read_token(text: str) -> str:
    """A token as given, or the content of a file for `@FILE` (keeps it out of the list of processes)."""
    if not text.startswith("@"):
        return text
    try:
        return Path(text[1:]).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise JoinFailed(
            f"the file {text[1:]} with the join token cannot be read: {error}", remedy="Check its path and mode."
        ) from error

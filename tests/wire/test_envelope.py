"""What a server may act on: signed by its master, for it, lately, and nothing else."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire import certs
from wire.envelope import CLOCK_SKEW_S, Envelope, open_envelope, seal
from wire.errors import BadSignature, Expired, StaleGeneration, WireError, WrongServer
from wire.messages import DesiredState

NOW = 1_800_000_000.0
PAIR = certs.make_signing_key()
KEY = certs.load_signing_key(PAIR.private_pem)
PUBLIC = certs.load_verify_key(PAIR.public_pem)
STATE = DesiredState(server_id="srv-a", generation=7)


def sealed() -> Envelope:
    return seal(KEY, STATE, purpose="desired", server_id="srv-a", generation=7, now=NOW)


def test_a_sealed_state_opens_to_the_same_state() -> None:
    payload = open_envelope(PUBLIC, sealed(), purpose="desired", server_id="srv-a", now=NOW, newest_generation=7)
    assert msgspec.json.decode(payload, type=DesiredState) == STATE


def test_another_masters_signature_is_refused() -> None:
    other = certs.load_verify_key(certs.make_signing_key().public_pem)
    with pytest.raises(BadSignature):
        open_envelope(other, sealed(), purpose="desired", server_id="srv-a", now=NOW)


def test_an_order_cannot_pose_as_a_state() -> None:
    with pytest.raises(BadSignature, match="sent as"):
        open_envelope(PUBLIC, sealed(), purpose="order", server_id="srv-a", now=NOW)


def test_another_servers_state_is_refused() -> None:
    with pytest.raises(WrongServer):
        open_envelope(PUBLIC, sealed(), purpose="desired", server_id="srv-b", now=NOW)


def test_an_older_generation_is_refused() -> None:
    with pytest.raises(StaleGeneration):
        open_envelope(PUBLIC, sealed(), purpose="desired", server_id="srv-a", now=NOW, newest_generation=8)


@pytest.mark.parametrize("now", [NOW - CLOCK_SKEW_S - 1, NOW + 300 + CLOCK_SKEW_S + 1])
def test_an_envelope_outside_its_validity_is_refused(now: float) -> None:
    with pytest.raises(Expired):
        open_envelope(PUBLIC, sealed(), purpose="desired", server_id="srv-a", now=now)


@given(
    change=st.sampled_from(["server_id", "generation", "issued_at", "expires_at", "payload", "signature", "purpose"]),
    text=st.text(max_size=8),
)
def test_no_field_can_be_altered(change: str, text: str) -> None:
    genuine = sealed()
    value = getattr(genuine, change)
    altered = value + (text + "x" if isinstance(value, str) else 1)
    with pytest.raises(WireError):
        open_envelope(
            PUBLIC, msgspec.structs.replace(genuine, **{change: altered}), purpose="desired", server_id="srv-a", now=NOW
        )

"""Money: whole nano-units where it is counted, decimals where people read and write it."""

from __future__ import annotations

from decimal import Decimal

NANO = 10**9
PLACES = 9


def to_nano(amount: Decimal) -> int:
    """Nano-units of an amount; what is below them is cut off."""
    return int(amount * NANO)


def from_nano(nano: int) -> Decimal:
    """The amount, without trailing zeros: 1.5, 20, 0.000001."""
    amount = (Decimal(nano) / NANO).normalize()
    return amount.quantize(Decimal(1)) if amount == amount.to_integral_value() else amount

"""Sizes and times: as people write them on the command line, and as they are shown to them."""

import re
from fractions import Fraction
from typing import Any

import click

from torpor.errors import UsageError

_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)(?:([kmg])(?:i?b)?)?", re.IGNORECASE)
_MEBIBYTES = {"k": Fraction(1, 1024), "m": Fraction(1), "g": Fraction(1024)}
_TIME = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m)?")
_MILLISECONDS = {"ms": 1, "s": 1000, "m": 60_000}
FOREVER = "-1"


class Quantity(int):
    """A number in a unit of the API's, which errors show as it was written."""

    written: str

    @classmethod
    def of(cls, written: str, number: int) -> "Quantity":
        """The number that was written so."""
        quantity = cls(number)
        quantity.written = written
        return quantity

    def __repr__(self) -> str:
        return self.written


class Memory(click.ParamType[Quantity]):
    """A size as `torpor vm run --memory` takes it, in MiB; a number alone is of MiB, too."""

    name = "size"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Quantity:
        """Raises UsageError."""
        if isinstance(value, Quantity):
            return value
        found = _SIZE.fullmatch(value)
        size = Fraction(found[1]) * _MEBIBYTES[(found[2] or "m").lower()] if found else None
        if size is None or size.denominator != 1:
            raise UsageError(
                f"{_named(param, ctx)} needs whole MiB, as 256, 256M or 1G, not '{value}'"
            )
        return Quantity.of(value, int(size))


class Time(click.ParamType[Quantity]):
    """A time in ms. `bare` is the unit of a number alone; without one it must be written."""

    name = "time"

    def __init__(self, bare: str = "", *, may_be_forever: bool = False) -> None:
        self._bare = bare
        self._may_be_forever = may_be_forever

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Quantity:
        """Raises UsageError."""
        if isinstance(value, Quantity):
            return value
        if value == FOREVER and self._may_be_forever:
            return Quantity.of(value, -1)
        found = _TIME.fullmatch(value)
        factor = _MILLISECONDS.get(found[2] or self._bare) if found else None
        if found is None or factor is None:
            alone = f"2 ({self._bare}), " if self._bare else ""
            forever = f", or {FOREVER} for ever" if self._may_be_forever else ""
            raise UsageError(
                f"{_named(param, ctx)} needs a time as {alone}1000ms, 5s or 1m{forever}, "
                f"not '{value}'"
            )
        return Quantity.of(value, int(Fraction(found[1]) * factor))


def _named(param: click.Parameter | None, ctx: click.Context | None) -> str:
    assert param is not None  # noqa: S101 -- these are types of options only
    return f"{param.param_type_name} {param.get_error_hint(ctx)}"


def size(number: float) -> str:
    """A number of bytes, in binary units as `docker stats` has them."""
    for unit in ("B", "KiB", "MiB"):
        if number < 1024:
            return f"{number:.0f}{unit}" if unit == "B" else f"{number:.4g}{unit}"
        number /= 1024
    return f"{number:.4g}GiB"


def lasting(milliseconds: float) -> str:
    """A time with its two largest units, as 250ms, 1.5s, 3m 12s, 2d 4h."""
    seconds = milliseconds / 1000
    if seconds < 1:
        return f"{milliseconds:.0f}ms"
    if seconds < 60:
        return f"{seconds:.3g}s"
    units = (("d", 86400), ("h", 3600), ("m", 60), ("s", 1))
    rest, words = int(seconds), []
    for unit, length in units:
        count, rest = divmod(rest, length)
        words.append((count, unit))
    while not words[0][0]:
        del words[0]
    return " ".join(f"{count}{unit}" for count, unit in words[:2] if count)

"""The one exception for input that cannot be used.

Everything a person can get wrong ends here; the command line prints it as one line and exits with code 2.
"""

from __future__ import annotations

import math
import re
import sys

SHOWN = 1000
"""How many characters of a value a message shows."""


class InputError(ValueError):
    """An argument, flag or file that cannot be used; the message says what, why and what to do instead."""

    def __init__(self, message: str) -> None:
        super().__init__(re.sub("[\ud800-\udfff]", lambda match: legible(match[0]), message))


def legible(name: str) -> str:
    """Return a file's name for people: a byte that is not UTF-8 as ``\\xff``, what ends a line as ``\\n``."""

    def shown(c: str) -> str:
        byte = ord(c) - 0xDC00  # where Python keeps it
        return f"\\x{byte:02x}" if 0x80 <= byte <= 0xFF else c.encode("unicode_escape").decode()

    return "".join(c if c.isprintable() else shown(c) for c in name)


def require(ok: bool, name: str, value: object, expected: str, remedy: str = "") -> None:
    """Raise :class:`InputError` unless ``ok``, naming the argument, its value, the expectation and the remedy."""
    if not ok:
        shown = re.sub(r"\\udc([89a-f][0-9a-f])", r"\\x\1", shortened(repr(value)))  # as legible() has it
        raise InputError(f"{name}={shown}: expected {expected}" + (f"; {remedy}" if remedy else ""))


def shortened(text: str) -> str:
    """Return a text without its middle where it is long."""
    return text if len(text) <= SHOWN else f"{text[: SHOWN // 2]} … {text[-SHOWN // 2 :]}"


def require_int(name: str, value: object, low: int, remedy: str = "") -> None:
    """Require a whole number of at least ``low`` (a bool is not one), and below 2⁶³, where tensors can count to."""
    ok = isinstance(value, int) and not isinstance(value, bool) and value >= low
    require(ok, name, value, f"a whole number of at least {low}", remedy)
    require(value < 2**63, name, value, "a whole number below 2^63", remedy)  # type: ignore[operator]


def require_float(
    name: str,
    value: object,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    open_low: bool = False,
    remedy: str = "",
) -> None:
    """Require a finite number in ``[low, high]`` (in ``(low, high]`` with ``open_low``)."""
    largest = sys.float_info.max  # which whole numbers, having no infinity, may exceed
    ok = isinstance(value, (int, float)) and not isinstance(value, bool) and -largest <= value <= largest
    ok = ok and low <= value <= high and not (open_low and value == low)  # type: ignore[operator]
    if math.isfinite(low) and math.isfinite(high):
        span = f"a number in {'(' if open_low else '['}{low:g}, {high:g}]"
    elif math.isfinite(low):
        span = f"a number {'above' if open_low else 'of at least'} {low:g}"
    else:
        span = "a finite number"
    require(ok, name, value, span, remedy)


def require_plain_name(name: str, value: object) -> None:
    """Require a name that is one part of a path: letters, digits, "_", "-", "+", "." inside it, and no separators."""
    ok = isinstance(value, str) and re.fullmatch(r"[\w+-][\w.+-]{0,99}", value) is not None
    require(ok, name, value, "a plain name of letters, digits, '_', '-', '+' and '.'")

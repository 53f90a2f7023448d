"""Numbers, counts, durations and like sentences as people read them: the same on the terminal and on a page."""

import math
import re
from collections.abc import Sequence

DASH = "-"
_PLAIN_FROM, _PLAIN_WIDTH_FROM = 1e-4, 1e-8


def number(value: float | None, digits: int = 4) -> str:
    """A number with that many significant digits, no exponent in the usual range; a dash for None."""
    if value is None:
        return DASH
    if value == 0 or _PLAIN_FROM <= abs(value) < 1e7:
        text = f"{value:.{digits}g}"
        return f"{value:.0f}" if "e" in text else text
    return f"{value:.{digits - 1}e}"


def plus_minus(value: float | None, half_width: float | None) -> str:
    """A number with its uncertainty, if there is one: 1.234 ± 0.012."""
    if value is None or half_width is None:
        return number(value)
    width = number(half_width, 2)
    if (
        "e" in width and abs(value) >= _PLAIN_FROM and half_width >= _PLAIN_WIDTH_FROM
    ):  # beside a plain number, a plain width
        width = f"{half_width:.{1 - math.floor(math.log10(half_width))}f}"
    return f"{number(value)} ± {width}"


def percent(fraction: float) -> str:
    """A fraction in per cent with two significant digits."""
    return f"{number(100 * fraction, 2)} %"


def signed_percent(fraction: float, digits: int) -> str:
    """A change in per cent with so many decimals and its sign."""
    return f"{100 * fraction:+.{digits}f} %".replace("-", "\N{MINUS SIGN}")


_UNSHOWN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")


def printable(text: str) -> str:
    """Text without what pages and pictures cannot hold or what turns the text around it: control characters."""
    return _UNSHOWN.sub("\N{REPLACEMENT CHARACTER}", text)


def counted(count: int, noun: str) -> str:
    """A count with its noun: 1 run, 2 runs."""
    return f"{count} {noun}" + ("" if count == 1 else "es" if noun.endswith("s") else "s")


def duration_text(seconds: float) -> str:
    """A duration for people."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"


_FIGURE = re.compile(r"process(?:es)? \d[\d, ]*|(?P<figure>(?<![\w.-])[+-]?\d+(?:,\d{3})*(?:\.\d+)?(?![\w-]))")
"""A number in a sentence; process ids and the digits of names are none."""


def merged(texts: Sequence[str]) -> tuple[str, bool]:
    """Texts that differ in their figures alone as one, with ranges, and True; else the first of them and False."""
    words, figures = zip(*map(_apart_from_figures, texts), strict=True)
    if len(set(words)) > 1:
        return texts[0], False
    spans = iter([_span(column) for column in zip(*figures, strict=True)])
    return re.sub("\0", lambda _: next(spans), words[0]), True


def _apart_from_figures(text: str) -> tuple[str, list[str]]:
    """The text with a NUL in place of each figure, and the figures."""
    figures: list[str] = []

    def take(found: re.Match[str]) -> str:
        if found["figure"] is None:
            return found[0]
        figures.append(found["figure"])
        return "\0"

    return _FIGURE.sub(take, text.replace("\0", "")), figures


def _span(figures: Sequence[str]) -> str:
    """The least and the largest as they were written; one where all are the same."""
    ordered = sorted(set(figures), key=lambda f: float(f.replace(",", "")))
    return ordered[0] if len(ordered) == 1 else f"{ordered[0]} to {ordered[-1]}"

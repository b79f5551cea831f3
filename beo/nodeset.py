"""Sets of node names in one short text: `node[01-08,11],head`.

A node set is text. Items are separated by commas; an item may hold brackets with numbers and ranges, each with a step
if wanted (`node[1-9/2]`), and several brackets make every combination (`rack[1-2]-node[1-4]`). Zero padding is kept:
`node1` and `node01` are two nodes. Every answer is free of doubles and in natural order (`node2` before `node10`), so
equal sets are equal texts.
"""

import itertools
import math
import re
from collections.abc import Iterable, Iterator

from beo.errors import UsageError

__all__ = ["EXPANSION_LIMIT", "difference", "expand", "fold", "intersect", "natural_key", "union"]

EXPANSION_LIMIT = 65_536  # names in one set: well above any cluster meant here, and reached before memory is
NAME_LIMIT_CHARS = 253  # the longest host name that DNS can carry
TEXT_LIMIT_CHARS = EXPANSION_LIMIT * 32  # a full set of ordinary names, written out
_QUOTE_LIMIT_CHARS = 80  # of a faulty text, that an error quotes
_DIGITS_LIMIT = 18  # of a number in brackets: stays within 63 bits

_NAME = re.compile(r"[A-Za-z0-9._-]+")
_ITEM = re.compile(r"\s*((?:[A-Za-z0-9._-]+|\[[^\[\]]*\])+)\s*")
_BRACKET = re.compile(r"\[([^\[\]]*)\]")
_RANGE = re.compile(r"([0-9]+)(?:-([0-9]+)(?:/([0-9]+))?)?")
_LAST_NUMBER = re.compile(r"(.*?)([0-9]+)([^0-9]*)")
_NUMBERS = re.compile(r"([0-9]+)")

_FORMS = "write it as head,node[01-08,11]"


def expand(text: str) -> list[str]:
    """Return the names in `text`, in natural order and without doubles; the empty text is the empty set.

    Raises `UsageError` for a text that is no node set, or that holds more than `EXPANSION_LIMIT` names.
    """
    if len(text) > TEXT_LIMIT_CHARS:
        raise UsageError(f"a node set of {len(text)} characters", f"the limit is {TEXT_LIMIT_CHARS}", "fold it first")
    names: set[str] = set()
    written = 0
    for item in _items(text):
        # split with a group alternates: literal, bracket, literal, bracket, ..., literal
        pieces = _BRACKET.split(item)
        choices = [_Choices(piece, text) for piece in pieces[1::2]]
        written += math.prod(len(choice) for choice in choices)
        if written > EXPANSION_LIMIT:
            why = f"more than {EXPANSION_LIMIT} names"
            raise UsageError(f"node set {_quoted(text)} is too large", why, "name fewer nodes")
        for numbers in itertools.product(*choices):
            name = pieces[0] + "".join(n + literal for n, literal in zip(numbers, pieces[2::2], strict=True))
            names.add(_checked_name(name))
    return sorted(names, key=natural_key)


def fold(names: Iterable[str]) -> str:
    """Return the shortest ordinary text for `names`: what differs only in its last number shares a bracket.

    `expand` is the way back. Raises `UsageError` for a text that is no node name, so no name can pass for several.
    """
    families: dict[tuple[str, str], list[str]] = {}  # (before the last number, after it) -> the numbers, as written
    items: list[tuple[str, str]] = []  # (a name to sort by, the text)
    for name in set(names):
        match = _LAST_NUMBER.fullmatch(_checked_name(name))
        if match and len(match[2]) <= _DIGITS_LIMIT:
            families.setdefault((match[1], match[3]), []).append(match[2])
        else:
            items.append((name, name))
    for (before, after), numbers in families.items():
        ranges = _ranges(numbers)
        first = f"{before}{ranges[0].partition('-')[0]}{after}"
        items.append((first, first if len(numbers) == 1 else f"{before}[{','.join(ranges)}]{after}"))
    return ",".join(text for _, text in sorted(items, key=lambda item: natural_key(item[0])))


def union(*texts: str) -> str:
    """Return the set of the names that are in any of `texts`."""
    return fold(name for text in texts for name in expand(text))


def difference(text: str, other: str) -> str:
    """Return the set of the names that are in `text` and not in `other`."""
    return fold(set(expand(text)) - set(expand(other)))


def intersect(text: str, other: str) -> str:
    """Return the set of the names that are in both."""
    return fold(set(expand(text)) & set(expand(other)))


def natural_key(name: str) -> tuple[tuple[str, int, str], ...]:
    """Return a key that sorts `node2` before `node10`, and `node1` and `node01` always the same way."""
    pieces = _NUMBERS.split(name)  # literal, digits, literal, digits, ..., literal
    digits = [*pieces[1::2], ""]
    return tuple((literal, int(n or -1), n) for literal, n in zip(pieces[::2], digits, strict=True))


class _Choices:
    """What one bracket stands for: counted before any of it is made, so that a huge range costs nothing."""

    def __init__(self, inside: str, text: str) -> None:
        self._ranges: list[tuple[range, int]] = []  # the numbers, and the width to which they are padded
        for part in inside.split(","):
            match = _RANGE.fullmatch(part.strip())
            if match is None or len(match[0]) > 3 * _DIGITS_LIMIT:
                why = f"{part.strip()[:_QUOTE_LIMIT_CHARS]!r} is no number or range"
                raise UsageError(f"{_quoted(text)} is no node set", why, _FORMS)
            low, high, step = match[1], match[2] or match[1], int(match[3] or 1)
            if _padding(high) not in (0, len(low)):
                why = f"the ends of [{part.strip()}] are padded differently"
                raise UsageError(f"{_quoted(text)} is no node set", why, _FORMS)
            if int(high) < int(low) or step < 1:
                why = f"[{part.strip()}] runs backwards" if step else f"[{part.strip()}] has a step of 0"
                raise UsageError(f"{_quoted(text)} is no node set", why, "write the smaller number first")
            self._ranges.append((range(int(low), int(high) + 1, step), _padding(low)))

    def __len__(self) -> int:
        return sum((numbers[-1] - numbers[0]) // numbers.step + 1 for numbers, _ in self._ranges)

    def __iter__(self) -> Iterator[str]:
        return (f"{number:0{width}d}" for numbers, width in self._ranges for number in numbers)


def _items(text: str) -> Iterator[str]:
    if not text.strip():
        return
    position = 0
    while True:
        match = _ITEM.match(text, position)
        if match is None:
            why = f"at character {position + 1} a name is missing or a bracket is open"
            raise UsageError(f"{_quoted(text)} is no node set", why, _FORMS)
        yield match[1]
        position = match.end()
        if position == len(text):
            return
        if text[position] != ",":
            why = f"{text[position]!r} at character {position + 1} cannot stand in a name"
            raise UsageError(f"{_quoted(text)} is no node set", why, _FORMS)
        position += 1


def _ranges(numbers: list[str]) -> list[str]:
    """Fold numbers, as written, into ranges: a number that reads the same padded and not joins its padded kin."""
    padded = {_padding(number) for number in numbers}
    keyed = sorted((int(n), len(n) if len(n) in padded else 0) for n in numbers)
    folded: list[str] = []
    for width in sorted({width for _, width in keyed}):
        row = [number for number, its_width in keyed if its_width == width]
        # number minus position is the same along a run of neighbours
        for _, run in itertools.groupby(enumerate(row), key=lambda pair: pair[1] - pair[0]):
            ends = [number for _, number in run]
            first, last = f"{ends[0]:0{width}d}", f"{ends[-1]:0{width}d}"
            folded.append(first if len(ends) == 1 else f"{first}-{last}")
    return sorted(folded, key=natural_key)


def _padding(number: str) -> int:
    """Return the width to which `number` is visibly padded, or 0."""
    return len(number) if len(number) > 1 and number[0] == "0" else 0


def _checked_name(name: str) -> str:
    if not _NAME.fullmatch(name) or len(name) > NAME_LIMIT_CHARS:
        why = f"letters, digits, '.', '_' and '-', up to {NAME_LIMIT_CHARS} of them"
        raise UsageError(f"{_quoted(name)} is no node name", why, "rename the node")
    return name


def _quoted(text: str) -> str:
    return repr(text if len(text) <= _QUOTE_LIMIT_CHARS else text[:_QUOTE_LIMIT_CHARS] + "…")

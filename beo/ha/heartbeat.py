"""Heartbeat's files by lines: ha.cf, haresources, authkeys, and DRBD's drbd0. importing.py makes settings of them.

The words are those of ha.cf(5) of Heartbeat 3, and the older ones of its versions 0.4 and 1; of drbd0 those of DRBD
0.5's /etc/sysconfig/drbd.
"""

from __future__ import annotations

import re
import shlex
from typing import NamedTuple

LINE_SHOWN_CHARS = 100  # of a line that is quoted
KEY_LENGTH_MIN = 16  # of an authentication key: what Heartbeat's own examples make by /dev/urandom is longer

METHODS = ("crc", "md5", "sha1")
KINDS = ("ha.cf", "haresources", "authkeys", "drbd")


class Source(NamedTuple):
    """One file: `path` as it is to be named, its `kind`, and its text."""

    path: str
    kind: str
    text: str


class Line(NamedTuple):
    """A line that says something: where it stands, its words, and as it reads."""

    path: str
    number: int
    words: tuple[str, ...]
    shown: str

    @property
    def where(self) -> str:
        """`FILE:LINE`"""
        return f"{self.path}:{self.number}"

    @property
    def key(self) -> str:
        """The first word."""
        return self.words[0]

    @property
    def rest(self) -> tuple[str, ...]:
        """The words behind it."""
        return self.words[1:]


class Resource(NamedTuple):
    """A resource of haresources: `IPaddr::10.0.0.1/24/eth0` has a name and arguments."""

    name: str
    arguments: tuple[str, ...]
    line: Line


class Address(NamedTuple):
    """What IPaddr is given: the address with the prefix where it has one, and the interface."""

    address: str
    interface: str


def kind_of(name: str) -> str:
    """Return which of `KINDS` a file of that name is; "" for none."""
    return name if name in KINDS else "drbd" if re.fullmatch(r"drbd(\d+|\.conf|\d*\.res)?", name) else ""


def lines(source: Source) -> list[Line]:
    """Return the lines that say something; one that ends in a backslash goes on in the next."""
    found: list[Line] = []
    held, first = "", 0
    for number, text in enumerate([*source.text.splitlines(), ""], 1):
        begun = text if source.kind == "drbd" else text.partition(" #")[0]
        if not held:
            first = number
            if begun.lstrip().startswith("#"):
                continue
        held += begun
        if held.endswith("\\") and number <= source.text.count("\n"):
            held = held[:-1] + " "
            continue
        if words := tuple(held.split()):
            found.append(Line(source.path, first, words, shown(held)))
        held = ""
    return found


def comments(source: Source) -> list[Line]:
    """Return what stands behind a `#` at the beginning of lines: sometimes that was meant."""
    found = []
    for number, text in enumerate(source.text.splitlines(), 1):
        if text.lstrip().startswith("#") and (words := tuple(text.lstrip(" \t#").split())):
            found.append(Line(source.path, number, words, shown(text)))
    return found


def shown(text: str) -> str:
    """Return a line as it may be quoted."""
    text = " ".join(text.split())
    return text if len(text) <= LINE_SHOWN_CHARS else text[:LINE_SHOWN_CHARS] + "…"


def duration_s(text: str) -> float:
    """Return the seconds of one of Heartbeat's times: `3`, `3s`, `500ms`, `500000us`. Raises ValueError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(s|ms|us)?", text, re.ASCII | re.IGNORECASE)
    if not match:
        raise ValueError(f"{text!r} is no time")
    return float(match[1]) / {"s": 1, "ms": 1_000, "us": 1_000_000}[(match[2] or "s").lower()]


def is_on(text: str) -> bool:
    """Return what a switch of Heartbeat's says. Raises ValueError."""
    word = text.lower()
    if word in ("on", "yes", "y", "true", "1"):
        return True
    if word in ("off", "no", "n", "false", "0"):
        return False
    raise ValueError(f"{text!r} is neither on nor off")


def resources(line: Line) -> list[Resource]:
    """Return the resources of a line of haresources, in the order in which they are started."""
    found = []
    for word in line.rest:
        name, *arguments = word.split("::")
        if looks_like_address(name):
            name, arguments = "IPaddr", [word]
        found.append(Resource(name, tuple(arguments), line))
    return found


def looks_like_address(text: str) -> bool:
    """Whether a word is meant for an IPv4 address, right or wrong."""
    return bool(re.fullmatch(r"\d+\.\d+\.\d+\.\d+(/.*)?", text, re.ASCII))


def address(text: str) -> Address:
    """Return what `ADDRESS[/PREFIX or MASK][/INTERFACE][/BROADCAST]` says. Raises ValueError."""
    from ipaddress import IPv4Address, IPv4Network  # here: the verb that is used once loads it, no other

    own, *parts = text.split("/")
    found = str(IPv4Address(own))
    prefix, interface = "", ""
    for part in parts:
        if re.fullmatch(r"\d{1,2}", part, re.ASCII) or (re.fullmatch(r"255\.[\d.]+|0\.0\.0\.0", part) and not prefix):
            prefix = str(IPv4Network(f"0.0.0.0/{part}").prefixlen)
        elif not looks_like_address(part):  # which is the broadcast address: the kernel makes it of the prefix
            interface = part.partition(":")[0]  # eth0:0 is an alias, as there were
    return Address(f"{found}/{prefix}" if prefix else found, interface)


def assignment(line: Line) -> tuple[str, str] | None:
    """Return the name and the value of a shell's NAME="VALUE"; None for a line that is none."""
    match = re.fullmatch(r"([A-Za-z_]\w*)=(.*)", line.shown.removeprefix("export "), re.ASCII | re.DOTALL)
    if not match:
        return None
    try:
        return match[1], " ".join(" ".join(shlex.split(match[2], comments=True)).split())
    except ValueError:  # a quotation without its end
        return match[1], match[2].strip("\"' ")


def statement(line: Line) -> tuple[str, tuple[str, ...]]:
    """Return the word and the values of a line of drbd.conf: `protocol C;`."""
    words = line.shown.replace(";", " ").replace("{", " ").split() or [line.key]
    return words[0], tuple(words[1:])


def hidden(line: Line) -> str:
    """Return a line of authkeys as it may be shown: without the key, also where that is in a wrong place."""
    number = line.key if line.key.isdigit() else ""
    method = line.words[1] if number and len(line.words) > 1 and line.words[1].lower() in METHODS else ""
    return " ".join(word for word in (number, method, "…") if word)


def weakness(method: str, key: str) -> str:
    """Say why an authentication key protects nobody; "" where it may."""
    if method == "crc":
        return "crc is no key at all: anybody in that network could speak for a node"
    if key.isdigit() or len(key) < KEY_LENGTH_MIN:
        digits = "digits" if key.isdigit() else "characters"
        return f"a key of {len(key)} {digits} is guessed in no time: change it wherever else it is used"
    return ""

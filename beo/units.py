"""Durations and sizes as people write them: `1h30m` and `4GiB`.

Durations are seconds (float), sizes are bytes (int). Slurm's forms are understood, so that a script that comes from
there keeps its meaning, with one exception: a bare number is *seconds* here, where Slurm reads minutes. A bare number
is refused as a size, since it means bytes to one reader and, in Slurm, MiB to another.
"""

import re

from beo.errors import UsageError

__all__ = [
    "DURATION_LIMIT_S",
    "SIZE_LIMIT_BYTES",
    "approximate_size",
    "format_duration",
    "format_size",
    "parse_duration",
    "parse_size",
]

DURATION_LIMIT_S = 3650 * 86400.0  # ten years: longer than any machine that could keep the promise
SIZE_LIMIT_BYTES = 1 << 60  # 1 EiB: beyond any cluster, and eight of them still add up within 63 bits
TEXT_LIMIT_CHARS = 64  # no honest duration or size is longer, and an error that quotes it stays short

_UNIT_MS = {"d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1000, "ms": 1}
_NUMBER = r"[0-9]+(?:\.[0-9]*)?|\.[0-9]+"
# Texts, compiled when first used (re keeps them): every verb imports this file, few read a duration.
_UNITS = "".join(rf"(?:({_NUMBER})\s*{unit}\s*)?" for unit in _UNIT_MS)
_CLOCK = (
    r"(?:(?P<d>[0-9]+)-(?P<dh>[0-9]+)(?::(?P<dm>[0-9]+)(?::(?P<ds>[0-9]+))?)?"
    r"|(?:(?P<h>[0-9]+):)?(?P<m>[0-9]+):(?P<s>[0-9]+))"
)
_DURATION_FORMS = "write it as 90 (seconds), 500ms, 30s, 1h30m, 2d, 01:30:00 or 2-12:00:00"

_PREFIXES = "KMGTPE"
_SIZE = rf"({_NUMBER})\s*(?:([{_PREFIXES}])(?:i?B)?|B)"
_SIZE_FORMS = "write it as 100B, 512M, 4GiB or 1.5TiB (each prefix is a power of 1024)"


def parse_duration(text: str) -> float:
    """Return the seconds that `text` stands for, from 0 to `DURATION_LIMIT_S`.

    Understood are a bare number (seconds), numbers with the units d h m s ms in falling order (`1h30m`, `1.5h`), and
    Slurm's `MM:SS`, `HH:MM:SS`, `D-HH`, `D-HH:MM` and `D-HH:MM:SS`. Raises `UsageError` for anything else.
    """
    whole = _checked(text, "duration", _DURATION_FORMS)
    if re.fullmatch(_NUMBER, whole, re.ASCII):
        seconds = float(whole)
    elif match := re.fullmatch(_CLOCK, whole, re.ASCII):
        part = {name: int(digits) for name, digits in match.groupdict(default="0").items()}
        hours, minutes, late = part["h"] + part["dh"], part["m"] + part["dm"], part["s"] + part["ds"]
        seconds = float(part["d"] * 86400 + hours * 3600 + minutes * 60 + late)
    elif (match := re.fullmatch(_UNITS, whole, re.ASCII)) and match.lastindex:
        # The sum is taken in whole milliseconds, so that 3s1ms is exactly the float 3.001.
        numbers = zip(match.groups(default="0"), _UNIT_MS.values(), strict=True)
        seconds = sum(float(number) * unit_ms for number, unit_ms in numbers) / 1000
    else:
        raise UsageError(f"{text!r} is no duration", cure=_DURATION_FORMS)
    if seconds > DURATION_LIMIT_S:
        raise UsageError(f"{text!r} is too long", f"the limit is {format_duration(DURATION_LIMIT_S)}", "ask for less")
    return seconds


def format_duration(seconds: float) -> str:
    """Return `seconds` (finite) to the millisecond, as `1h30m`; `parse_duration` is the way back.

    A negative span, which clocks that disagree can show, has a minus sign in front.
    """
    rest_ms = round(abs(seconds) * 1000)
    if not rest_ms:
        return "0s"
    parts = ["-"] if seconds < 0 else []
    for unit, unit_ms in _UNIT_MS.items():
        count, rest_ms = divmod(rest_ms, unit_ms)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts)


def parse_size(text: str) -> int:
    """Return the bytes that `text` stands for, from 0 to `SIZE_LIMIT_BYTES`; a part of a byte is rounded.

    A number with `B` or one of the prefixes K M G T P E; `4G`, `4GB` and `4GiB` are the same, powers of 1024 as in
    Slurm. Raises `UsageError` for anything else, a bare number included.
    """
    whole = _checked(text, "size", _SIZE_FORMS)
    match = re.fullmatch(_SIZE, whole, re.ASCII | re.IGNORECASE)
    if match is None:
        why = "a bare number could mean bytes or MiB" if re.fullmatch(_NUMBER, whole, re.ASCII) else ""
        raise UsageError(f"{text!r} is no size", why, _SIZE_FORMS)
    number, prefix = match.groups()
    unit = 1 << 10 * (_PREFIXES.index(prefix.upper()) + 1) if prefix else 1
    size_bytes = int(number) * unit if number.isdecimal() else round(float(number) * unit)
    if size_bytes > SIZE_LIMIT_BYTES:
        raise UsageError(f"{text!r} is too large", f"the limit is {format_size(SIZE_LIMIT_BYTES)}", "ask for less")
    return size_bytes


def format_size(size_bytes: int) -> str:
    """Return `size_bytes` exactly, in the largest unit without a fraction: `1536MiB`; `parse_size` is the way back."""
    power = 0
    while size_bytes and size_bytes % 1024 == 0 and power < len(_PREFIXES):
        size_bytes //= 1024
        power += 1
    return f"{size_bytes}{_unit_name(power)}"


def approximate_size(size_bytes: int) -> str:
    """Return `size_bytes` for reading, to three digits or so: `15.6GiB`."""
    size, power = float(size_bytes), 0
    while abs(size) >= 999.95 and power < len(_PREFIXES):  # 999.95 would print as 1000.0
        size /= 1024
        power += 1
    return f"{size:.1f}".removesuffix(".0") + _unit_name(power)


def _unit_name(power: int) -> str:
    return f"{_PREFIXES[power - 1]}iB" if power else "B"


def _checked(text: str, noun: str, forms: str) -> str:
    if len(text) > TEXT_LIMIT_CHARS:
        raise UsageError(f"a {noun} of {len(text)} characters", f"the limit is {TEXT_LIMIT_CHARS}", forms)
    return text.strip()

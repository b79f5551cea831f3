"""What two heads should have alike: their settings, versions, keys and clocks. Pure; each head tells what it has."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from beo import messages as ms
from beo.settings import Config, HaConfig

CLOCK_MAX_S = 1.0  # of difference: what a job's time limit and the log's lines may be off after a take-over
HASH_CHARS = 8  # enough to tell two apart

# What belongs to a machine, and what an entry of the journal says for both once the cluster is born.
OWN = frozenset({"head.listen", "ha.links", "ha.interface"})
BORN = frozenset(f"ha.{key}" for key in ("level", "takeover", "failback", "lease_s", "silence_s"))

CLOCK, MISSING, KEY = "clock", "missing", "key."  # of facts that are no settings
HOLDS, PROGRAMS = "now.address", "now.programs"  # of what a head does around its role at present: nothing to compare


class Told(NamedTuple):
    """What a head has told about itself; `asked_s` is the asker's wall clock when the answer came."""

    name: str
    version: str
    entry_format: int
    config: Mapping[str, str]
    asked_s: float


class Difference(NamedTuple):
    """What is not alike: the thing, what each head has, and what to do."""

    what: str
    one: str
    other: str
    cure: str

    def __str__(self) -> str:
        """`[head] queued_max: 100000 on A, 5 on B: write the same into both beo.toml`"""
        return f"{self.what}: {self.one}, {self.other}: {self.cure}"


def facts(config: Config, keys: Mapping[str, str], missing: tuple[str, ...] = ()) -> dict[str, str]:
    """Return what a head tells others about its machine, without secrets.

    keys: public keys by name. missing: programs of on_promote that this machine does not have.
    """
    told = {name: value for name, value in _flat("", msgspec.to_builtins(config)) if name not in OWN | BORN}
    told["ha.on_promote"] = _programs(config.ha)
    told |= {f"{KEY}{name}": key[:HASH_CHARS] for name, key in sorted(keys.items())}
    return told | ({MISSING: ", ".join(missing)} if missing else {})


def told(view: ms.PairIs, asked_s: float) -> Told:
    """Return what a head told in its answer about the pair, which came at `asked_s` (wall clock)."""
    return Told(view.name, view.version, view.entry_format, view.config, asked_s)


def differences(one: Told, other: Told) -> list[Difference]:
    """Return what is not alike on two heads, or wrong with one of them; [] where all is well.

    What only one of them tells is of another version's making, or no setting at all: it is not compared.
    """
    names = one.name, other.name
    found = []

    def differ(what: str, values: tuple[object, object], cure: str) -> None:
        first, second = (f"{value} on {name}" for value, name in zip(values, names, strict=True))
        found.append(Difference(what, first, second, cure))

    if one.version != other.version:
        differ("beo's version", (one.version, other.version), "upgrade the older one: first where the standby is")
    if one.entry_format != other.entry_format:
        formats = one.entry_format, other.entry_format
        differ("the format of journal entries", formats, "only the one that is behind can take over from the other")
    for key in sorted(one.config.keys() & other.config.keys() - {CLOCK, MISSING, HOLDS, PROGRAMS}):
        values = one.config[key], other.config[key]
        if values[0] == values[1]:
            continue
        if key.startswith(KEY):
            name = key.removeprefix(KEY)
            differ(f"the {name} key", values, "they are not of one cluster: 'beo head join' one of them anew")
        else:
            table, _, rest = key.partition(".")
            differ(f"[{table}] {rest}", values, "write the same into both beo.toml, and restart that head")
    found += _clocks(one, other)
    for head in (one, other):
        if missing := head.config.get(MISSING):
            cure = "install them, and restart that head"
            found.append(
                Difference("programs of on_promote", f"{missing} missing on {head.name}", "as it started", cure)
            )
    return found


def _clocks(one: Told, other: Told) -> list[Difference]:
    try:
        ahead = [float(head.config[CLOCK]) - head.asked_s for head in (one, other)]
    except (KeyError, ValueError):
        return []
    apart_s = ahead[0] - ahead[1]
    if not abs(apart_s) > CLOCK_MAX_S:
        return []
    fast, slow = (one, other) if apart_s > 0 else (other, one)
    texts = f"{abs(apart_s):.1f} s ahead on {fast.name}", f"behind on {slow.name}"
    return [Difference("the clock", *texts, "have both set by a time server")]


def _programs(config: HaConfig) -> str:
    """The programs by name, and whether their commands are the same, which may hold what others must not see."""
    if not config.on_promote:
        return "none"
    whole = msgspec.json.encode(
        [program.words(key) for program in config.on_promote for key in ("start", "stop", "run")]
    )
    names = ", ".join(program.title for program in config.on_promote)
    return f"{names} ({hashlib.sha256(whole).hexdigest()[:HASH_CHARS]})"


def _flat(front: str, table: Mapping[str, Any]) -> list[tuple[str, str]]:
    found = []
    for key, value in table.items():
        name = f"{front}{key}"
        if isinstance(value, Mapping):
            found += _flat(f"{name}.", value)
        elif name != "ha.on_promote":
            found.append((name, str(value) if value != "" else "none"))
    return found

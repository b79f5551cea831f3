"""Machines that boot from the heads: which there are, with which names, addresses and images. Pure.

They are put on record when they are first seen, and keep what they have for good: a server of boots on either head
gives the same answers, since there is no other list. Who of them may join is decided in joining.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from ipaddress import AddressValueError, IPv4Address
from typing import get_args

import msgspec

from beo import events as ev
from beo import messages as ms
from beo import nodeset
from beo.errors import Conflict, NotFound, UsageError
from beo.headnode.model import Machine
from beo.headnode.state import State
from beo.headnode.tokens import NAME_LENGTH_MAX
from beo.proof import HEX, mac_of, words_of
from beo.settings import BootConfig, Config, WorkerConfig

MACHINES_MAX = 4_096  # as many as a cluster has nodes
POLICIES = ("lan", "approve", "asset")
CURRENT = "current"
ADDRESS_LENGTH_MAX = 45  # of IPv6, as text
POWER_LENGTH_MAX = 500  # of the command that turns a machine on and off
OPEN_AGAIN_S = 5.0  # a script that is fetched again sooner is the same boot's
STALE_S = 86_400.0  # who never joined and was silent for so long makes room for others
_WORDS_OF_A_WORKER = ("lease_s", "rack")  # what a worker is told otherwise, or has of its own


Wish = ms.LeaseMachine | ms.OpenMachine | ms.ApproveMachine | ms.SetMachine | ms.ForgetMachine | ms.ListMachines
WISHES = get_args(Wish)
Why = Callable[[str, float], str]  # a MAC address and now -> why that machine doesn't join


def decide(
    state: State, config: BootConfig, user: str, wish: Wish, why: Why, now_s: float
) -> tuple[list[ev.Event], ms.HeadAnswer]:
    """Take a wish about machines; return its events, and the answer."""
    match wish:
        case ms.LeaseMachine():
            events, machine = lease(state, config, wish, now_s)
        case ms.OpenMachine():
            events, machine = opened(state, wish.mac, wish.address[:ADDRESS_LENGTH_MAX], now_s)
        case ms.ApproveMachine():
            events, machine = approve(state, user, wish, now_s)
        case ms.SetMachine():
            events, machine = change(state, config, user, wish, now_s)
        case ms.ForgetMachine():
            return forget(state, user, wish.mac, now_s), ms.Done()
        case ms.ListMachines():
            return [], listed(state, config, why, now_s)
    return events, ms.MachineIs(row(state, machine, config, why(machine.mac, now_s)))


# ---- who there is --------------------------------------------------------------------------------------------------


def lease(state: State, config: BootConfig, wish: ms.LeaseMachine, now_s: float) -> tuple[list[ev.Event], Machine]:
    """Put a machine on record when it is first seen; return its events, and it as it is then."""
    mac = mac_of(wish.mac)
    known = state.machines.get(mac)
    if known and (known.address or not config.range):
        return [], known
    gone, others = _make_room(state, config, mac, now_s)
    address = _free_address(state, config, others)
    name = known.name if known else _new_name(state, config, wish.hostname, others)
    event = ev.MachineLeased(mac, name, address, now_s)
    made = msgspec.structs.replace(known or Machine(mac, name), address=address, seen_s=now_s)
    return [*gone, event], made


def _make_room(state: State, config: BootConfig, mac: str, now_s: float) -> tuple[list[ev.Event], dict[str, Machine]]:
    """Return the other machines, without one that nobody will miss where there would be no room."""
    others = {known.mac: known for known in state.machines.values() if known.mac != mac}
    full = len(others) >= MACHINES_MAX or (bool(config.range) and next(_addresses(state, config, others), None) is None)
    stale = [known for known in others.values() if _is_stale(known, now_s)]
    if not full or not stale:
        if len(others) >= MACHINES_MAX:
            cure = "'beo node forget' those that are no more"
            raise Conflict(f"{len(others)} machines are on record already", "it can't be more", cure)
        return [], others
    oldest = min(stale, key=lambda known: (known.seen_s, known.mac))
    del others[oldest.mac]
    return [ev.MachineForgotten(oldest.mac, "beo", now_s)], others


def _is_stale(known: Machine, now_s: float) -> bool:
    is_set = known.policy or known.tag or known.power or known.image != CURRENT
    return not is_set and not known.boots and not known.approved and known.seen_s < now_s - STALE_S


def _addresses(state: State, config: BootConfig, others: dict[str, Machine]) -> Iterator[str]:
    """The free addresses of the range, in order."""
    taken = {known.address for known in others.values()}
    taken |= {node.address.rpartition(":")[0] for node in state.nodes.values()}
    taken |= {head.control.rpartition(":")[0] for head in state.heads.values()}
    first, _, last = config.range.partition("-")
    low, high = int(IPv4Address(first.strip())), int(IPv4Address(last.strip()))
    return (text for number in range(low, high + 1) if (text := str(IPv4Address(number))) not in taken)


def _free_address(state: State, config: BootConfig, others: dict[str, Machine]) -> str:
    if not config.range:
        return ""
    address = next(_addresses(state, config, others), None)
    if address is None:
        cure = "'beo node forget' machines that are no more, or make it larger"
        raise Conflict(f"no address is left in [boot] range = {config.range!r}", "all have their machine", cure)
    return address


def _names(state: State, others: dict[str, Machine]) -> set[str]:
    return {known.name for known in others.values()} | state.nodes.keys() | state.node_keys.keys()


def _new_name(state: State, config: BootConfig, hostname: str, others: dict[str, Machine]) -> str:
    """As the machine calls itself, if that is a name of its own; else the next number."""
    taken = _names(state, others)
    own = hostname.partition(".")[0].lower()
    if _is_name(own) and own not in (*taken, "localhost"):
        return own
    return next(name for n in range(1, 10**6) if (name := f"{config.prefix}{n:02d}") not in taken)


def _is_name(name: str) -> bool:
    bare = name.replace("-", "")
    plain = bare.isascii() and bare.isalnum() and name[0] != "-" and len(name) <= NAME_LENGTH_MAX
    return plain and nodeset.expand(name) == [name]


def find(state: State, mac: str) -> Machine:
    """Return a machine by its MAC address; raises NotFound."""
    known = state.machines.get(mac_of(mac))
    if not known:
        cure = f"let it boot from the network, or put it on record: 'beo node set {mac_of(mac)} --policy default'"
        raise NotFound(f"no machine with the MAC address {mac_of(mac)}", "none such is on record", cure)
    return known


def opened(state: State, mac: str, address: str, now_s: float) -> tuple[list[ev.Event], Machine]:
    """A machine fetches its boot script, from this address."""
    known = find(state, mac)
    if 0 <= now_s - known.opened_s < OPEN_AGAIN_S and known.opened_from == address:
        return [], known
    new = msgspec.structs.replace(known, opened_s=now_s, seen_s=now_s, opened_from=address)
    return [ev.MachineOpened(known.mac, now_s, address)], new


def policy_of(known: Machine, config: BootConfig) -> str:
    """By what a machine is known."""
    return known.policy or config.policy


# ---- what the operator says ----------------------------------------------------------------------------------------


def approve(state: State, user: str, wish: ms.ApproveMachine, now_s: float) -> tuple[list[ev.Event], Machine]:
    """Take the operator's word for a key."""
    known = find(state, wish.mac)
    if wish.key in (known.approved, known.key) and wish.key:
        return [], known
    if not known.asked or known.asked.key != wish.key:
        why = f"its words are {words_of(known.asked.key)!r}" if known.asked else "it hasn't asked"
        raise Conflict(f"{known.name} doesn't wait with that key", why, "see 'beo node pending'")
    event = ev.MachineApproved(known.mac, wish.key, user, now_s)
    return [event], msgspec.structs.replace(known, approved=wish.key)


def change(state: State, config: BootConfig, user: str, wish: ms.SetMachine, now_s: float) -> _Changed:
    """Change what is on record of a machine, or put one there that hasn't booted yet."""
    mac = mac_of(wish.mac)
    known = state.machines.get(mac)
    others = {other.mac: other for other in state.machines.values() if other.mac != mac}
    events: list[ev.Event] = []
    if not known:
        hostname = wish.name or ""
        events, known = lease(state, config, ms.LeaseMachine(mac, hostname), now_s)
    said = {field: getattr(wish, field) for field in ("name", "address", "image", "policy", "tag", "power")}
    new = msgspec.structs.replace(known, **{field: value for field, value in said.items() if value is not None})
    _check_machine(state, known, new, others)
    if new != known:
        what = (new.name, new.address, new.image, new.policy, new.tag, new.power)
        events.append(ev.MachineSet(mac, *what, user, now_s))
    return events, new


_Changed = tuple[list[ev.Event], Machine]


def _check_machine(state: State, known: Machine, new: Machine, others: dict[str, Machine]) -> None:
    if not new.name or not _is_name(new.name):
        raise UsageError(f"{new.name[:NAME_LENGTH_MAX]!r} is no name for a node", "", "use letters and digits")
    if new.name != known.name:
        if new.name in _names(state, others):
            raise Conflict(f"there is a node {new.name} already", "", "choose another name")
        node = state.nodes.get(known.name)
        if node and node.state == "up":
            raise Conflict(f"{known.name} is up", "a node keeps its name while it runs", "turn it off first")
    if new.address != known.address and new.address:
        _check_address(new.address)
        if whose := next((other.name for other in others.values() if other.address == new.address), ""):
            raise Conflict(f"{new.address} is {whose}'s", "", "choose another address")
    if new.image != CURRENT and (len(new.image) != 64 or not HEX.issuperset(new.image)):
        raise UsageError(f"{new.image[:80]!r} is no image", "it is a sha256, or 'current'", "see 'beo image list'")
    if new.policy not in ("", *POLICIES):
        raise NotFound.among("policy", new.policy, POLICIES, f"it is {', '.join(POLICIES)}")
    if new.tag and (len(new.tag) != 64 or not HEX.issuperset(new.tag)):
        raise UsageError("this is no asset tag's key", "", "update this beo")
    if len(new.power) > POWER_LENGTH_MAX or not new.power.isprintable():
        raise UsageError("the power command is unusable", f"one line, {POWER_LENGTH_MAX} at most", "change --power")


def _check_address(text: str) -> None:
    try:
        address = IPv4Address(text)
    except AddressValueError:
        raise UsageError(f"{text[:40]!r} is no address", "", "write it as 10.77.0.100") from None
    if address.is_multicast or address.is_loopback or address.is_unspecified or address.is_reserved:
        raise UsageError(f"{text} is no machine's address", "", "write it as 10.77.0.100")


def forget(state: State, user: str, mac: str, now_s: float) -> list[ev.Event]:
    """Take a machine off the record."""
    known = find(state, mac)
    node = state.nodes.get(known.name)
    if node and node.state == "up":
        raise Conflict(f"{known.name} is up", "only a machine that is off can be forgotten", "turn it off first")
    return [ev.MachineForgotten(known.mac, user, now_s)]


# ---- what is told --------------------------------------------------------------------------------------------------


def row(state: State, known: Machine, config: BootConfig, why: str = "") -> ms.MachineView:
    """One row of `beo node list`."""
    asked = known.asked.key if known.asked else ""
    key = asked or known.key
    return ms.MachineView(
        known.mac,
        known.name,
        known.address,
        known.image,
        policy_of(known, config),
        _state_of(state, known, config),
        words_of(key) if key else "",
        key,
        bool(known.tag),
        known.power,
        max(known.seen_s, known.opened_s, known.joined_s),
        known.joined_s,
        why,
    )


def _state_of(state: State, known: Machine, config: BootConfig) -> str:
    policy = policy_of(known, config)
    if known.asked and policy == "approve" and known.asked.key != known.approved:
        return "pending"
    if known.key and known.key in state.authorized:
        return "joined"
    may = known.approved if policy == "approve" else known.tag if policy == "asset" else "lan"
    return "approved" if may else "pending"


def listed(state: State, config: BootConfig, why: Why, now_s: float) -> ms.MachinesAre:
    """Return all machines on record."""
    known = sorted(state.machines.values(), key=lambda machine: (machine.name, machine.mac))
    return ms.MachinesAre(tuple(row(state, one, config, why(one.mac, now_s)) for one in known))


def settings_of(config: Config) -> str:
    """Return beo.toml as a worker of this cluster needs it that has none: what [worker] and [files] have of their own.

    All of it is numbers and texts, which JSON writes as TOML reads them.
    """
    files: dict[str, object] = {"without_head": config.files.without_head, "bulk": config.files.bulk}
    files |= {"held_bytes_max": config.files.held_bytes_max, "backend": config.files.backend, "path": config.files.path}
    plain = {name: getattr(WorkerConfig(), name) for name in WorkerConfig.__struct_fields__}
    own = {name: getattr(config.worker, name) for name in plain if name not in _WORDS_OF_A_WORKER}
    lines = ["[worker]", *(f"{name} = {json.dumps(value)}" for name, value in own.items() if value != plain[name])]
    lines += ["[files]", *(f"{name} = {json.dumps(value)}" for name, value in files.items())]
    if config.files.mounts:
        lines += ["[files.mounts]", *(f"{json.dumps(at)} = {json.dumps(of)}" for at, of in config.files.mounts.items())]
    return "\n".join(lines) + "\n"

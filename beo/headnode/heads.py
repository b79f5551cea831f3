"""Which heads belong to the cluster: how a second one is taken in, where it is reached, how one is let go. Pure.

A newcomer comes by a token as every machine does (tokens.py): its own key gets the role *head*. By that key, which it
alone has, it then says where it is reached, and is told what every head must know: the others' addresses and the
cluster's secret keys. So a token that somebody finds after its use, or what he recorded of the joining, gives nothing.
"""

from __future__ import annotations

from beo import events as ev
from beo import messages as ms
from beo.errors import Conflict, NotFound, UsageError
from beo.headnode.decide import User
from beo.headnode.model import HeadInfo
from beo.headnode.state import State
from beo.settings import LINKS_MAX

NAMES = ("A", "B")  # A's epochs are odd, B's even: a third name would need another arithmetic
ADDRESS_LENGTH_MAX = 255  # the longest name of a host, and its port


def listed(state: State) -> tuple[ms.HeadView, ...]:
    """Return the heads, in the order of their names."""
    return tuple(ms.HeadView(name, info.control, info.bulk, info.links) for name, info in sorted(state.heads.items()))


def begin(state: State, own: ms.HeadView, now_s: float) -> list[ev.Event]:
    """Put on record where the head that begins to act is reached, if that is new."""
    known = state.heads.get(own.name)
    if known and (known.control, known.bulk, known.links) == (own.control, own.bulk, own.links):
        return []
    key = known.key if known else ""
    return [ev.HeadJoined(own.name, own.control, own.bulk, own.links, now_s, key)]


def check_room(state: State) -> str:
    """Return the name that a further head gets; raises Conflict where there are two."""
    taken = {state.head, *state.heads}
    free = [name for name in NAMES if name not in taken]
    if not free:
        where = " and ".join(f"{view.name} at {view.control}" for view in listed(state))
        raise Conflict("this cluster has two heads already", where, "'beo head leave' takes one of them away")
    return free[0]


def join(state: State, key: str, wish: ms.JoinHead, now_s: float) -> tuple[list[ev.Event], ms.HeadJoinedIs]:
    """Take in a head by its own key, once; later it may say the same again, or that it is reached elsewhere now.

    The answer is without the secret keys: a pure file has none, and the shell adds them when the answer leaves.
    """
    for text in (wish.control, wish.bulk, *wish.links):
        _check_address(text)
    if not 1 <= len(wish.links) <= LINKS_MAX + 1:
        raise UsageError(f"{len(wish.links)} links of a head", f"it has 1 to {LINKS_MAX + 1}", "mend [ha] links there")
    name = next((name for name, info in state.heads.items() if info.key == key), "") or check_room(state)
    new = HeadInfo(wish.control, wish.bulk, wish.links, key)
    places = {wish.control, wish.bulk, *wish.links}
    for other, info in state.heads.items():
        shared = sorted(places & {info.control, info.bulk, *info.links}) if other != name else []
        if shared:
            raise UsageError(f"{shared[0]} is head {other}'s", "two heads can't share it", "choose another --listen")
    events: list[ev.Event] = []
    if state.heads.get(name) != new:
        events = [ev.HeadJoined(name, wish.control, wish.bulk, wish.links, now_s, key)]
    view = ms.HeadView(name, wish.control, wish.bulk, wish.links)
    heads = tuple(sorted((view, *(known for known in listed(state) if known.name != name)), key=lambda one: one.name))
    return events, ms.HeadJoinedIs(name, state.cluster, heads, now_s)


def leave(state: State, user: User, name: str, now_s: float) -> list[ev.Event]:
    """Let a head go that doesn't act, and its key with it."""
    info = state.heads.get(name)
    if info is None:
        raise NotFound.among("head", name, state.heads, f"it has {', '.join(sorted(state.heads))}")
    if name == state.head:
        raise Conflict(f"head {name} acts", "the other one would have to", "'beo ha switchover' first")
    events: list[ev.Event] = [ev.HeadLeft(name, user.name, now_s)]
    if info.key in state.authorized:
        events.append(ev.KeyRevoked(info.key, user.name, now_s))
    return events


def _check_address(text: str) -> None:
    host, _, port = text.rpartition(":")
    numbered = port.isascii() and port.isdigit() and 0 < int(port[:6]) < 1 << 16
    if not host or not numbered or not text.isprintable() or " " in text or len(text) > ADDRESS_LENGTH_MAX:
        raise UsageError(f"{text[:ADDRESS_LENGTH_MAX]!r} is no address of a head", "", "write it as HOST:PORT")

"""The facts that are journalled keep their form."""

from __future__ import annotations

from typing import get_args

import msgspec
import pytest

from beo import events as ev
from beo.votes import PairSettings
from tests.world import ranks_ended, spec

FACTS: list[ev.Event] = [
    ev.Born("c" * 32, "A", 1.0),
    ev.EpochBegan(3, "A", 1.0, 0.7),
    ev.HeadJoined("B", "10.0.0.2:7420", "10.0.0.2:7421", ("10.0.0.2:7422",), 1.0),
    ev.HeadLeft("B", "root", 1.0),
    ev.PairSet(PairSettings(level="B", failback=True), "root", 1.0),
    ev.KeyAuthorized("k" * 40, "ann", "user", 1.0),
    ev.KeysRevoked(("k" * 40,), "ann", True, "root", 1.0),
    ev.UserAllowed("ann", "root", 1.0),
    ev.Submitted(1, "key", "ann", 1000, 1000, (4, 5), spec(env={"B": "2", "A": "1"}, ranks=2), 1.5),
    ev.Started(1, 1, (ev.Part("n1", "i1", 0, 2),), "nonce", 2.0),
    ev.PartEnded(1, 1, "n1", ev.PartResult(ranks_ended(0, 2, 3), "rank", 1, "why"), 3.0),
    ev.PartGone(1, 1, "n1", "its warden was killed", 3.0),
    ev.CancelRequested(1, "ann", "cancelled by ann", 3.0),
    ev.SignalRequested(1, 1, 1, 10, "ann", "key", 3.0),
    ev.NodeJoined("n1", "i1", "boot", "n1:1", "k", 4, 1 << 30, {"contain": "pidns"}, ((1, 1),), 0.5),
    ev.NodeLost("n1", "i1", "silent for 16 s", 9.0),
    ev.NodeGone("n1", "i1", "root", 9.0),
    ev.Forgotten((1, 2), 9.0),
    ev.JobHeld(1, "root", "admin", 2.0),
    ev.JobReleased(1, "root", 2.0),
    ev.RequeueRequested(1, 2, "ann", 2.0, "owner"),
    ev.PrioritySet(1, 5, "ann", 2.0),
    ev.NodeDrained("n1", "root", "a new disk", 2.0),
    ev.NodeResumed("n1", "root", 2.0),
    ev.NodeForgotten("n1", "i1", "root", 2.0),
    ev.KeyRevoked("k" * 40, "root", 9.0),
    ev.TokenMade(1, "t" * 40, "worker", "worker", -1, 1, 10.0, "root", 9.0),
    ev.Enrolled("t" * 40, "n" * 40, "pc1", 9.5),
    ev.ProcessSignalled(1, "n1", 77, -1, 9, "ann", 2.0),
    ev.VaultCopied(1, 1, "n1", "a" * 64, 5, 2.0, (("mark", 1, 2),)),
    ev.MachineLeased("52:54:00:00:00:01", "pc01", "10.77.0.100", 2.0),
    ev.MachineOpened("52:54:00:00:00:01", 2.0),
    ev.MachineAsked("52:54:00:00:00:01", "boot", "k" * 40, 2.0),
    ev.MachineApproved("52:54:00:00:00:01", "k" * 40, "root", 2.0),
    ev.MachineJoined("52:54:00:00:00:01", "boot", "k" * 40, "pc01", 2.0),
    ev.MachineSet("52:54:00:00:00:01", "pc01", "10.77.0.100", "current", "lan", "", "", "root", 2.0),
    ev.MachineForgotten("52:54:00:00:00:01", "root", 2.0),
    ev.MoveRequested(1, 1, ("n1",), ("n2",), "migrate", "ann", 2.0),
    ev.Reserved(1, "key", "night", "root", ("ann", "bob"), ("n1", "n2"), True, 5.0, 9.0, False, 2.0),
    ev.ReservationMoved("night", ("n1", "n3"), 3.0),
    ev.ReservationEnded("night", "root", 4.0),
]


def test_every_kind_of_event_is_here() -> None:
    assert {type(fact) for fact in FACTS} == set(get_args(ev.Event))


@pytest.mark.parametrize("fact", FACTS, ids=lambda fact: type(fact).__name__)
def test_an_event_survives_the_journal(fact: ev.Event) -> None:
    assert ev.decode(ev.encode(fact)) == fact
    assert ev.encode(ev.decode(ev.encode(fact))) == ev.encode(fact)


def test_the_same_event_gives_the_same_bytes_in_whatever_order_its_words_came() -> None:
    one, other = ({"A": "1", "B": "2"}, {"B": "2", "A": "1"})
    first, second = (ev.Submitted(1, "key", "ann", 0, 0, (), spec(env=env), 1.0) for env in (one, other))
    assert ev.encode(first) == ev.encode(second)


def test_the_form_of_an_entry_never_changes() -> None:
    """A journal written by an earlier beo is read by a later one: a change here needs a new FORMAT."""
    assert ev.decode(b"\x94\xaaEpochBegan\x03\xa1A\xcb?\xf0\x00\x00\x00\x00\x00\x00") == ev.EpochBegan(3, "A", 1.0)
    assert ev.decode(b"\x94\xa4Born\xa1c\xa1A\xcb?\xf0\x00\x00\x00\x00\x00\x00") == ev.Born("c", "A", 1.0)


@pytest.mark.parametrize(
    "data", [b"", b"\x00", b"\x91\xa5Other", b"\x93\xa4Born\xa1\xff\xa1A", ev.encode(FACTS[3])[:-4]]
)
def test_damaged_bytes_are_one_kind_of_error(data: bytes) -> None:
    with pytest.raises(msgspec.MsgspecError):
        ev.decode(data)

"""What `beo ha status` says of two heads: its exit code, what is promised, who takes over, what is wrong."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from beo import messages as m
from beo.errors import BeoError, NoHead
from beo.ha import telling, verify
from beo.votes import GENERATION_SHIFT

A = m.HeadView("A", "10.0.0.1:7420", "10.0.0.1:7421", ("10.0.0.1:7422",))
B = m.HeadView("B", "10.0.0.2:7420", "10.0.0.2:7421", ("10.0.0.2:7422",))
VOTERS = tuple(m.VoterView(f"node0{n}/x", f"node0{n}", "", True, 0.1) for n in (1, 2, 3))
BORN_S = 1_800_000_000.0


def view(name: str = "A", role: str = "primary", **words: Any) -> m.PairIs:
    fields: dict[str, Any] = {
        "name": name,
        "role": role,
        "why": "",
        "epoch": 3,
        "cfg": None,
        "in_step": True,
        "primary": "A",
        "last": 100,
        "commit": 100,
        "match": 100,
        "output_lag_bytes": 0,
        "heard_s": 0.1,
        "heads": (A, B),
        "voters": VOTERS,
        "level": "C",
        "takeover": "automatic",
        "failback": False,
        "frozen": False,
        "lease_s": 0.6,
        "silence_s": 0.4,
        "born_s": BORN_S,
        "down_s": 0.0,
        "takeovers": 0,
        "orphans": 0,
        "findings": (),
        "version": "0.1.0",
        "entry_format": 1,
        "other_version": "0.1.0",
        "config": {},
    }
    return m.PairIs(**{**fields, **words})


def told(*views: m.PairIs, **silent: BeoError) -> telling.Fare:
    """What these heads tell; silent: those that don't answer, by name."""
    places = {"A": A.control, "B": B.control}
    found: dict[str, m.PairIs | BeoError] = {places[one.name]: one for one in views}
    return telling.fare(found | {places[name]: error for name, error in silent.items()})


def said(fare: telling.Fare, after_s: float = 1_000.0) -> str:
    return "\n".join(telling.sentences(fare, BORN_S + after_s))


STANDBY = view("B", "standby", last=97)


def test_in_step_is_0_alone_is_1_and_nobody_is_69() -> None:
    assert telling.exit_code(told(view(), STANDBY)) == 0
    assert telling.exit_code(told(view(in_step=False), STANDBY)) == 1
    assert telling.exit_code(told(view(), B=NoHead("gone"))) == 1, "it is not yet known that it is alone"
    assert telling.exit_code(told(view(role="idle"), view("B", "candidate"))) == 69
    assert telling.exit_code(told(view(heads=(A,), in_step=False))) == 1


@pytest.mark.parametrize(
    ("level", "promise"),
    [
        ("C", "level C: what is acknowledged is on both disks"),
        ("B", "level B: what is acknowledged is on the disk of A and has been received by B"),
        ("A", "level A: what is acknowledged is on the disk of A; B follows, 3 entries behind"),
    ],
)
def test_what_is_promised_follows_from_the_level(level: str, promise: str) -> None:
    assert promise in said(told(view(level=level, match=97), STANDBY))


def test_what_is_promised_by_one_head_alone_is_less_and_says_why() -> None:
    assert "A is alone (B is silent): what is acknowledged is on its disk only, and B can't take over" in said(
        told(view(in_step=False, why="B is silent"), B=NoHead("no head answers"))
    )
    assert said(told(view(heads=(A,), in_step=False))).startswith("one head: what is acknowledged is on the disk of A")
    waits = view("B", "idle", why="waits for A, which may hold newer jobs")
    assert "nobody acts: nothing is taken, and what runs goes on; waits for A" in said(told(waits, A=NoHead("gone")))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ({}, "take-over is automatic, 0.6 s after"),
        ({"failback": True}, "A gets its role back"),
        ({"takeover": "manual"}, "'beo ha takeover' lets the other head act"),
        ({"takeover": "manual", "frozen": True}, "frozen: nobody follows the primary until 'beo ha thaw'"),
    ],
)
def test_who_takes_over_is_said(words: dict[str, Any], sentence: str) -> None:
    assert sentence in said(told(view(**words), STANDBY))


def test_voters_are_named_and_those_that_are_silent_counted() -> None:
    silent = m.VoterView("node03/x", "node03", "", True, 9.0)
    idle = m.VoterView("node04/x", "node04", "", False, 0.1)
    witness = m.VoterView("witness:box/y", "witness:box", "", True, 0.1)
    assert "voters: node[01-03]; 2 of 3 answer" in said(told(view(voters=(*VOTERS[:2], silent, idle)), STANDBY))
    assert "voters: node01, witness:box; 2 of 2 answer" in said(told(view(voters=(VOTERS[0], witness)), STANDBY))


def test_that_there_is_no_voter_is_said_with_its_cure() -> None:
    holder = m.VoterView("holder/A", "holder", "", True, -1.0)
    text = said(told(view(voters=(holder,)), STANDBY))
    assert "no voter but A itself: B can't go on without it before an operator says so: start workers, or" in text
    assert "no voter: a head that loses the other one can't go on" in said(told(view(voters=()), STANDBY))


def test_availability_is_measured_since_birth() -> None:
    one = view(down_s=2.5, takeovers=2)
    assert "a head acted 99.750 % of 16m40s (down 2.5 s in all), 2 take-overs" in said(told(one, STANDBY))
    assert telling.availability(one, BORN_S + 1_000.0) == 0.9975
    assert telling.availability(one, BORN_S - 5.0) == 0.0, "a clock that is set back makes no nonsense"
    assert "1 take-over" in said(told(view(takeovers=1), STANDBY))


def test_of_two_that_take_themselves_for_the_primary_the_later_one_counts() -> None:
    fare = told(view(), view("B", epoch=4))
    assert fare.primary and fare.primary.name == "B"


def test_every_head_has_a_row_also_one_that_is_silent() -> None:
    rows = telling.rows(told(view(epoch=(1 << GENERATION_SHIFT) + 3), B=NoHead("no head answers at x", "tried")))
    assert [(row["head"], row["role"]) for row in rows] == [("A", "primary"), ("B", "silent")]
    assert rows[0]["epoch"] == "1:3" and rows[1]["why"] == "no head answers at x (tried)"
    rows = telling.rows(told(view(), STANDBY))
    assert [(row["state"], row["behind"]) for row in rows] == [("in step", 0), ("in step", 3)]


def test_a_head_that_answers_at_no_known_address_is_told_too() -> None:
    found: dict[str, m.PairIs | BeoError] = {A.control: view(), "10.0.0.9:7420": NoHead("nobody")}
    rows = telling.rows(telling.fare(found))
    assert [(row["head"], row["role"]) for row in rows] == [("A", "primary"), ("B", "silent"), ("?", "silent")]


def test_findings_say_whose_they_are() -> None:
    fare = told(view(findings=("the second cable is cut",)), msgspec.structs.replace(STANDBY, orphans=2))
    assert telling.findings(fare) == [
        "A: the second cable is cut",
        "B: 2 entries of it the cluster does not have: see 'beo ha orphans' there",
    ]


def test_output_that_the_standby_lacks_is_told() -> None:
    assert "output: the standby lacks 4096" in said(told(view(output_lag_bytes=4096), STANDBY)).replace("4KiB", "4096")
    assert "output: the standby lacks an unknown amount" in said(told(view(output_lag_bytes=1 << 60), STANDBY))


def test_who_has_the_service_address_and_what_programs_run_is_told() -> None:
    config = {"ha.address": "10.0.0.50/24", "ha.on_promote": "httpd (1)"}
    acting = view(config={**config, verify.HOLDS: "10.0.0.50", verify.PROGRAMS: "httpd up, pages failed"})
    standby = view("B", "standby", config=config)
    told_by_both = said(told(acting, standby))
    assert "service address: 10.0.0.50/24 is on A\n" in told_by_both
    assert "programs on A: httpd up, pages failed\n" in told_by_both and "programs on B" not in told_by_both
    assert "service address: 10.0.0.50/24 is on no head\n" in said(told(view(config=config), standby))
    assert "service address" not in said(told(view(), STANDBY)) and "programs" not in said(told(view(), STANDBY))

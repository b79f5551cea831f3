"""What is still single in a cluster, one description each; and what two heads have that is not alike."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import pytest

from beo import messages as ms
from beo import votes
from beo.ha import spof, verify
from beo.ha.spof import Head, Site, Voter, singles
from beo.ha.verify import Told
from beo.settings import Config, HaConfig, HeadConfig, Program, WorkerConfig

TWO_NETWORKS = frozenset({"10.0.0.0/24", "192.168.7.0/24"})
A = Head("A", "10.0.0.1", networks=TWO_NETWORKS)
B = Head("B", "10.0.0.2", networks=TWO_NETWORKS)
VOTERS = tuple(Voter(f"n{number}", f"10.0.0.1{number}", f"r{number}") for number in range(3))
GOOD = Site((A, B), VOTERS, ("10.0.0.10", "10.0.0.11"))


def told(site: Site) -> list[str]:
    return [str(single) for single in singles(site)]


def heads(**changes: Any) -> tuple[Head, ...]:
    return tuple(head._replace(**changes) for head in (A, B))


def test_nothing_is_single_where_two_of_everything_are_apart() -> None:
    assert told(GOOD) == []


@pytest.mark.parametrize(
    ("site", "wanted"),
    [
        (GOOD._replace(heads=(A,)), "one head: with it end the queue"),
        (GOOD._replace(heads=heads(host="10.0.0.1")), "the machine 10.0.0.1: both heads are on it"),
        (GOOD._replace(heads=(A, B._replace(up=False))), "head A: head B does not answer"),
        (GOOD._replace(in_step=False), "the primary's disk: the standby is not in step yet"),
        (GOOD._replace(level="A"), "the primary's disk: at level A"),
        (GOOD._replace(takeover="manual"), "the operator: nobody else lets the standby take over"),
        (GOOD._replace(frozen=True), "the primary: take-over is frozen"),
        (GOOD._replace(voters=()), "either head: .*there is no voter to ask: start workers, or 'beo witness'"),
        (
            GOOD._replace(voters=(VOTERS[0], *(voter._replace(alive=False) for voter in VOTERS[1:]))),
            "either head: 1 of 3 voters answer",
        ),
        (
            GOOD._replace(voters=tuple(voter._replace(host="10.0.0.1") for voter in VOTERS)),
            r"the machine 10.0.0.1: with head A go 3 of 3 votes \(n0, n1, n2\), and B can't go on",
        ),
        (
            GOOD._replace(
                heads=(A._replace(rack="r1"), B._replace(rack="r2")),
                voters=tuple(voter._replace(rack="r1") for voter in VOTERS[:2]) + VOTERS[2:],
            ),
            r"the rack r1: with head A go 2 of 3 votes \(n0, n1\), and B can't go on: have voters in another rack",
        ),
        (
            GOOD._replace(voters=tuple(voter._replace(rack="r1") for voter in VOTERS)),
            "the rack r1: all voters are in it, and perhaps a head",
        ),
        (
            GOOD._replace(heads=heads(networks=frozenset({"10.0.0.0/24"}))),
            "the network 10.0.0.0/24: all ways between the heads are in it.* links",
        ),
        (
            GOOD._replace(heads=(A, B._replace(networks=frozenset({"10.0.0.0/24"})))),
            "the network 10.0.0.0/24: all ways",
        ),
        (
            GOOD._replace(heads=(A._replace(address="10.0.0.50/24"), B._replace(address="none"))),
            "head A: head B has no such setting, so the service address would not follow",
        ),
        (
            GOOD._replace(heads=(A._replace(address="x"), B._replace(address="x", programs="httpd (1)"))),
            "head B: head A has no such setting, so the programs of on_promote would not follow",
        ),
        (GOOD._replace(heads=heads(programs="httpd (1)")), "the primary's address: .*set .ha. address"),
        (GOOD._replace(workers=()), "nobody: no worker is up"),
        (GOOD._replace(workers=("10.0.0.10", "10.0.0.10")), "the worker 10.0.0.10: all jobs run on this machine"),
    ],
)
def test_what_is_single_is_named_with_the_cure_and_nothing_else_is(site: Site, wanted: str) -> None:
    (found,) = told(site)
    assert re.match(wanted, found), found
    assert all(part for part in singles(site)[0])


def test_with_one_voter_nothing_is_single_and_half_of_two_is_no_majority() -> None:
    assert told(GOOD._replace(voters=VOTERS[:1])) == []
    assert told(GOOD._replace(voters=(VOTERS[0], VOTERS[1]._replace(host="10.0.0.1")))) == [
        "the machine 10.0.0.1: with head A go 1 of 2 votes (n1), and B can't go on: have voters in another machine"
    ]


def test_one_machine_with_everything_on_it_is_told_once() -> None:
    here = "127.0.0.1"
    site = Site(heads(host=here, networks=frozenset({"127.0.0.0/24"})), (Voter("node01", here),), (here, here))
    assert [single.what for single in singles(site)] == ["the machine 127.0.0.1", "the worker 127.0.0.1"]


def view(name: str = "A", **changes: Any) -> ms.PairIs:
    views = tuple(
        ms.HeadView(
            head.name, f"{head.host}:7420", f"{head.host}:7421", (f"{head.host}:7422", f"192.168.7.{number}:7422")
        )
        for number, head in enumerate((A, B), 1)
    )
    voters = (
        ms.VoterView("n0/a", "n0", "r0", True, 0.1),
        ms.VoterView("n1/b", "n1", "r1", True, -1.0),
        ms.VoterView("witness:w/c", "witness:w", "", True, 0.2),
        ms.VoterView("n3/d", "n3", "r3", False, 0.1),
    )
    config = verify.facts(Config(ha=HaConfig(address="10.0.0.50/24")), {})
    cfg = votes.Cfg(1, 1, ("A", "B"), (("n0/a", "n1/b", "witness:w/c"),))
    fixed = ms.PairIs(
        name, "primary", "", 1, cfg, True, "A", 9, 9, 9, 0, 0.1, views, voters, "C", "automatic", False, False,
        0.6, 0.4, 0.0, 0.0, 0, 0, (), "1.0", 1, "1.0", config,
    )  # fmt: skip
    return msgspec.structs.replace(fixed, **changes) if changes else fixed


def node(name: str, host: str, state: str = "up") -> ms.NodeView:
    return ms.NodeView(name, state, 2, 0, 0, (), f"{host}:7500", {}, 0.1, "i")


def test_a_site_is_made_of_what_the_heads_and_the_nodes_tell() -> None:
    nodes = [node("n0", "10.0.0.10"), node("n1", "10.0.0.11", "lost"), node("n3", "10.0.0.13")]
    site = spof.site_of(view(), view("B"), nodes, {"10.0.0.1": "r9"})
    assert site.heads == (
        Head("A", "10.0.0.1", "r9", TWO_NETWORKS, True, "10.0.0.50/24", "none"),
        Head("B", "10.0.0.2", "", TWO_NETWORKS, True, "10.0.0.50/24", "none"),
    )
    assert site.voters == (
        Voter("n0", "10.0.0.10", "r0", True),
        Voter("n1", "10.0.0.11", "r1", False),
        Voter("witness:w", "", "", True),
    )
    assert site.workers == ("10.0.0.10", "10.0.0.13") and (site.in_step, site.level) == (True, "C")
    assert told(site) == []
    alone = spof.site_of(view(), None, nodes, {})
    assert [head.up for head in alone.heads] == [True, False] and len(told(alone)) == 1


# ---- verify ---------------------------------------------------------------------------------------------------------


def head(name: str, config: Config | None = None, **facts: str) -> Told:
    own = verify.facts(config or Config(), {"head": "k" * 40, "admin": "a" * 40})
    return Told(name, "1.0", 3, {**own, "clock": "1000.0", **facts}, 1000.0)


def also(told: Told, **facts: str) -> Told:
    return told._replace(config={**told.config, **{name.replace("_", ".", 1): value for name, value in facts.items()}})


def test_two_heads_that_are_alike_have_no_difference() -> None:
    mine = Config(head=HeadConfig(listen="10.0.0.1:7420"), ha=HaConfig(links=("192.168.7.1",), interface="eth0"))
    assert verify.differences(head("A", mine), head("B")) == [], "where a head listens is its own business"
    born = Config(ha=HaConfig(level="A", lease_s=3.0))
    assert verify.differences(head("A", born), head("B")) == [], "what a cluster is born with is an entry since"


@pytest.mark.parametrize(
    ("other", "wanted"),
    [
        (
            head("B", Config(head=HeadConfig(queued_max=5))),
            "[head] queued_max: 100000 on A, 5 on B: write the same into both beo.toml, and restart that head",
        ),
        (head("B", Config(worker=WorkerConfig(grace_s=9.0))), "[worker] grace_s: 5.0 on A, 9.0 on B: write the same"),
        (head("B", Config(ha=HaConfig(address="10.0.0.50/24"))), "[ha] address: none on A, 10.0.0.50/24 on B: write"),
        (head("B")._replace(version="1.1"), "beo's version: 1.0 on A, 1.1 on B: upgrade the older one"),
        (head("B")._replace(entry_format=4), "the format of journal entries: 3 on A, 4 on B"),
        (also(head("B"), key_admin="other"), "the admin key: aaaaaaaa on A, other on B: they are not of one cluster"),
        (head("B", clock="990.0"), "the clock: 10.0 s ahead on A, behind on B: have both set by a time server"),
        (head("B", clock="1010.5"), "the clock: 10.5 s ahead on B, behind on A"),
        (head("B", missing="httpd"), "programs of on_promote: httpd missing on B, as it started: install them"),
    ],
)
def test_what_is_not_alike_is_named_with_both_values_and_the_cure(other: Told, wanted: str) -> None:
    (found,) = verify.differences(head("A"), other)
    assert str(found).startswith(wanted)


def test_programs_are_compared_by_their_commands_and_none_is_shown() -> None:
    def with_words(words: str) -> Told:
        return head("B", Config(ha=HaConfig(on_promote=(Program(name="db", start=words),))))

    assert verify.differences(with_words("/bin/db --password x"), with_words("/bin/db --password x")) == []
    assert verify.differences(with_words("/bin/db --password x"), with_words("'/bin/db' --password   x")) == []
    (found,) = verify.differences(with_words("/bin/db --password secret1"), with_words("/bin/db --password secret2"))
    assert found.what == "[ha] on_promote" and "db (" in found.one and "secret" not in str(found)


def test_clocks_are_compared_by_when_each_was_asked_and_nonsense_is_no_clock() -> None:
    late = head("B", clock="1030.2")._replace(asked_s=1030.0)
    assert verify.differences(head("A"), late) == []
    for nonsense in ("", "nan", "soon"):
        assert verify.differences(head("A"), head("B", clock=nonsense)) == []


def test_who_has_the_address_at_present_is_no_difference() -> None:
    assert (
        verify.differences(
            also(head("A"), now_address="10.0.0.50", now_programs="httpd up"),
            also(head("B"), now_programs="httpd stopping"),
        )
        == []
    )


def test_what_only_a_newer_head_tells_is_no_difference() -> None:
    assert verify.differences(head("A"), also(head("B"), head_new_setting="5")) == []

"""Who may say what: every kind of message has its line in one table, and the table is what the head does."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from beo import events as ev
from beo import messages as ms
from beo import votes
from beo.errors import BeoError, Internal, NotFound
from beo.headnode import permissions, views
from beo.headnode.decide import User
from beo.headnode.permissions import ADMIN, ALL, HEAD, OWNER, PEER, RULES, TOKEN, WORKER
from beo.results import PartResult
from tests.world import World, settings, spec

KINDS: dict[str, type] = {
    kind.__name__: kind
    for union in (ms.ClientRequest, ms.AgentReport, ms.VoterWord, ms.BulkRequest)
    for kind in get_args(union)  # which ms.to_head and ms.bulk_to_head read
}

SECRET = "hidden-word"
JOB = 1  # ann's, in the world below

# One message of each kind about ann's job. A new kind needs its line here, or the tests below fail.
SAMPLES: dict[str, Any] = {
    "Info": ms.Info(),
    "Submit": ms.Submit("new", spec(), 1000, 1000, ()),
    "ListJobs": ms.ListJobs((str(JOB),)),
    "ShowJob": ms.ShowJob((str(JOB),)),
    "WaitJobs": ms.WaitJobs((JOB,), 0.0),
    "Cancel": ms.Cancel((str(JOB),)),
    "Hold": ms.Hold((str(JOB),)),
    "Release": ms.Release((str(JOB),)),
    "Requeue": ms.Requeue(((JOB, 1),)),
    "ListProcesses": ms.ListProcesses((str(JOB),)),
    "SignalProcesses": ms.SignalProcesses((ms.Target(JOB, "n1", 77),), 9, "key"),
    "AskRanks": ms.AskRanks((str(JOB),), "checkpoint"),
    "Migrate": ms.Migrate(((JOB, 1),), ""),
    "SetPriority": ms.SetPriority((str(JOB),), 5),
    "Signal": ms.Signal(JOB, 9, "key"),
    "ListNodes": ms.ListNodes(),
    "AskTree": ms.AskTree(),
    "ListEvents": ms.ListEvents(),
    "ListHistory": ms.ListHistory((str(JOB),)),
    "DeclareGone": ms.DeclareGone("n1"),
    "Drain": ms.Drain("n1"),
    "Resume": ms.Resume("n1"),
    "ForgetNodes": ms.ForgetNodes("n1"),
    "MakeToken": ms.MakeToken("t" * 40, "worker", "root", -1, 1, 60.0),
    "ListTokens": ms.ListTokens(),
    "RevokeTokens": ms.RevokeTokens(()),
    "Enrol": ms.Enrol("k" * 40, "n9"),
    "ListUsers": ms.ListUsers(),
    "RevokeKeys": ms.RevokeKeys("bob"),
    "AllowUser": ms.AllowUser("bob"),
    "Join": ms.Join("n9", "i", "b", "a", "k", 1, 1, {}, ()),
    "Ping": ms.Ping("n1", "n1-1", 1, (), ()),
    "Ended": ms.Ended("n1", "n1-1", JOB, 1, PartResult((), "", -1, "")),
    "Gone": ms.Gone("n1", "n1-1", JOB, 1, "said so"),
    "Delivered": ms.Delivered("n1", "n1-1", JOB, 1, 1),
    "VaultCopied": ms.VaultCopied("n1", "n1-1", JOB, 1, "a" * 64, 5),
    "VaultsAre": ms.VaultsAre("n1", "n1-1", ()),
    "Health": ms.Health("n1", "n1-1", 1.0),
    "Processes": ms.Processes("n1", "n1-1", 1, ms.Machine(0.5, 4, 1, 1), ()),
    "Hits": ms.Hits("n1", "n1-1", 1, ()),
    "Vouch": ms.Vouch("n1", "n1-1", 1, 1000, 1000, (), "k" * 40),
    "Chunk": ms.Chunk("n1", "n1-1", JOB, 1, 0, b""),
    "Fetch": ms.Fetch(JOB, 1, 0, 0.0),
    "Stdin": ms.Stdin(JOB, 1, 0, b"", False),
    "StdinAck": ms.StdinAck(JOB, 1, 0, False),
    "BulkHello": ms.BulkHello("n1", "n1-1"),
    "Copy": ms.Copy(1, (ms.Piece(JOB, 1, 0, 0, b""),)),
    "Offer": ms.Offer(1, 7, 0, ()),
    "Exported": ms.Exported(1, ((JOB, 1, "o"),)),
    "AskPair": ms.AskPair(),
    "Steer": ms.Steer("freeze"),
    "SetPair": ms.SetPair(level="B"),
    "JoinHead": ms.JoinHead("b:1", "b:2", ("b:3",)),
    "LeaveHead": ms.LeaveHead("B"),
    "Reserve": ms.Reserve("key", 60.0, after_s=60.0, nodes="n1"),
    "ListReservations": ms.ListReservations(),
    "CancelReservations": ms.CancelReservations(("night",)),
    "AskPlace": ms.AskPlace("n1"),
    "LeaseMachine": ms.LeaseMachine("52:54:00:00:00:01"),
    "OpenMachine": ms.OpenMachine("52:54:00:00:00:01"),
    "JoinMachine": ms.JoinMachine("52:54:00:00:00:01", "boot", "k" * 40, "10.77.0.100:600"),
    "ListMachines": ms.ListMachines(),
    "ApproveMachine": ms.ApproveMachine("52:54:00:00:00:01", "k" * 40),
    "SetMachine": ms.SetMachine("52:54:00:00:00:01", policy="lan"),
    "ForgetMachine": ms.ForgetMachine("52:54:00:00:00:01"),
    "AskConsole": ms.AskConsole("52:54:00:00:00:01"),
    "Present": votes.Present("n1/x", "n1"),
    "Promise": votes.Promise("n1/x", 3, None),
    "Accepted": votes.Accepted("n1/x", 3, 1),
    "Granted": votes.Granted("n1/x", 3, 1.0),
    "Refuse": votes.Refuse("n1/x", 3, 5),
}
BULK = {kind.__name__ for kind in get_args(ms.BulkRequest)}
# The server answers it, from the journal: test_others_events_lack_their_words. The rest is the pair's: test_replica.py
ELSEWHERE = {
    "AskConsole",
    "AskTree",
    "ListEvents",
    "AskPair",
    "Steer",
    "Present",
    "Promise",
    "Accepted",
    "Granted",
    "Refuse",
}


@pytest.fixture
def world() -> World:
    world = World()
    world.node("n1", slots=4)
    words: dict[str, Any] = {"argv": (f"/bin/{SECRET}", SECRET), "env": {"A": SECRET}, "cwd": f"/{SECRET}"}
    words |= {"script": f"#!/bin/sh\n{SECRET}", "output": f"/{SECRET}", "errors": f"/{SECRET}.e"}
    assert world.submit("ann", name="sim", **words) == JOB
    return world


def test_every_kind_of_message_has_a_rule_and_a_sample() -> None:
    assert set(RULES) == set(KINDS.values()), "give the new kind of message its line in headnode/permissions.py"
    assert set(SAMPLES) == set(KINDS), "give the new kind of message its line in SAMPLES"


def test_a_kind_without_a_rule_is_nobodys() -> None:
    class Unheard:
        pass

    with pytest.raises(Internal, match="nobody may say Unheard"):
        permissions.check_role(User("root", "admin"), Unheard())


def _said(world: World, name: str, who: str) -> Any:
    """What the head answers; the error, where it refuses. Of the bulk plane, what its rule says."""
    if name in BULK:
        roles = {"root": "admin", "worker": "worker", "token": "token", "head": "head", "peer": "peer"}
        user = User(who, roles.get(who, "user"))
        try:
            return permissions.check_bulk(None if who == "stranger" else user, "ann", SAMPLES[name])
        except BeoError as error:
            return ms.Failed(error.to_dict())
    if who == "token":
        who = "o" * 40
        world.answer(ms.MakeToken(who, "worker", "root", -1, 1, 60.0), "root")
    answers = world.answers(world.ask(SAMPLES[name], who))
    return answers[0] if answers else None


def _is_refused(answer: Any) -> bool:
    return isinstance(answer, ms.Failed) and answer.error["kind"] == "Refused"


@pytest.mark.parametrize("name", sorted(set(KINDS) - ELSEWHERE))
@pytest.mark.parametrize("who", ["ann", "bob", "root", "worker", "token", "head", "stranger"])
def test_each_message_is_taken_from_whom_the_table_says_and_nobody_else(world: World, name: str, who: str) -> None:
    rule = RULES[KINDS[name]]
    allowed = {
        "ann": rule not in (WORKER, ADMIN, TOKEN, HEAD, PEER),
        "bob": rule not in (WORKER, ADMIN, TOKEN, HEAD, PEER, OWNER),
        "root": rule not in (WORKER, TOKEN, HEAD, PEER),
        "worker": rule in (WORKER, ALL),
        "token": rule == TOKEN,
        "head": rule in (HEAD, ALL),
        "stranger": False,
    }[who]
    before = world.state.index + (who == "token" and name not in BULK)  # the token's own making
    answer = _said(world, name, who)
    assert _is_refused(answer) is not allowed, answer
    if not allowed:
        assert world.state.index == before, "what was refused has changed something"
        assert answer.error["cure"], "a refusal names the cure"


@pytest.mark.parametrize("name", sorted(BULK))
def test_the_other_head_gives_copies_and_asks_for_nothing(world: World, name: str) -> None:
    assert _is_refused(_said(world, name, "peer")) is (RULES[KINDS[name]] != PEER)


@pytest.mark.parametrize("name", sorted(name for name in set(KINDS) - BULK if RULES[KINDS[name]] == OWNER))
def test_a_refusal_names_the_owner_and_whom_to_ask(world: World, name: str) -> None:
    error = _said(world, name, "bob").error
    assert (error["what"], error["why"]) == ("job 1 belongs to ann", "you are bob")
    assert "ask ann" in error["cure"]


@pytest.mark.parametrize("name", sorted(name for name in KINDS if RULES[KINDS[name]] == OWNER))
def test_a_job_that_never_was_is_nobodys(world: World, name: str) -> None:
    fields = {f: getattr(SAMPLES[name], f) for f in SAMPLES[name].__struct_fields__}
    others = {"select": ("77",), "jobs": ((77, 0),), "targets": (ms.Target(77, "n1", 1),), "job": 77}
    foreign = KINDS[name](**{f: others.get(f, value) for f, value in fields.items()})
    bob = User("bob", "user")
    with pytest.raises(NotFound, match="no job"):
        permissions.check_bulk(bob, None, foreign) if name in BULK else permissions.check(world.state, bob, foreign)


def test_one_job_of_others_among_ones_own_spoils_the_whole_request(world: World) -> None:
    own = world.submit("bob")
    answer = world.answer(ms.Cancel((f"{JOB}-{own}",)), "bob")
    assert _is_refused(answer)
    assert world.job(own).state != "cancelled"


@pytest.mark.parametrize(
    "name", sorted(name for name in KINDS if RULES[KINDS[name]] == permissions.SEEN and name not in ELSEWHERE)
)
def test_of_others_jobs_nothing_is_seen_but_the_row(world: World, name: str) -> None:
    assert SECRET in repr(_said(world, "ShowJob", "ann")), "the sample would prove nothing"
    assert SECRET not in repr(_said(world, name, "bob"))


def test_how_anothers_job_ended_is_not_told(world: World) -> None:
    world.nodes["n1"].end(JOB, 1, "abort", 0, f"rank 0 called MPI_Abort: {SECRET}")
    for message in (ms.ListJobs((str(JOB),)), ms.ShowJob((str(JOB),)), ms.WaitJobs((JOB,), 0.0)):
        assert SECRET in repr(world.answer(message, "ann"))
        assert SECRET not in repr(world.answer(message, "bob"))
        assert SECRET in repr(world.answer(message, "root"))


def test_private_hides_the_names_of_others_jobs(world: World) -> None:
    def names(who: str) -> list[str]:
        return [job.name for job in world.answer(ms.ListJobs((str(JOB),)), who).jobs]

    assert (names("ann"), names("bob")) == (["sim"], ["sim"])
    world = World(settings(private=True))
    world.submit("ann", name="sim")
    assert (names("ann"), names("bob"), names("root")) == (["sim"], ["-"], ["sim"])


def test_others_events_lack_their_words(world: World) -> None:
    world.nodes["n1"].end(JOB, 1, "abort", 0, SECRET)
    rows = {
        who: [views.event_row(n, 1, ev.decode(data), world.state, user) for n, data in enumerate(world.disk.entries, 1)]
        for who, user in (("ann", User("ann", "user")), ("bob", User("bob", "user")), ("root", User("root", "admin")))
    }
    assert SECRET in repr(rows["ann"]) and SECRET in repr(rows["root"])
    assert SECRET not in repr(rows["bob"])
    assert [row.kind for row in rows["bob"]] == [row.kind for row in rows["ann"]]
    del world.state.jobs[JOB]  # off the record
    last = ev.decode(world.disk.entries[-1])
    assert not views.event_row(9, 1, last, world.state, User("ann", "user")).text

"""The guards of the production cores, each switched off on purpose: the simulation must miss it.

A mutant is a patch of the production code. The table MUTANTS says in which scenario it is looked for, in how many
seeds at most, and, where that would take too many, why, and by which other test it is missed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import msgspec
import pytest

from beo import events as ev
from beo import messages as ms
from beo import votes
from beo.ha import acts as pacts
from beo.ha import voters as choosing
from beo.ha.leading import Leader
from beo.ha.log import Log
from beo.ha.pair import Pair
from beo.ha.proposer import Proposer
from beo.ha.register import Acceptor
from beo.ha.taking import Taker
from beo.headnode import acts as headacts
from beo.headnode import core as headcore
from beo.headnode import state
from beo.votes import Cfg
from beo.worker import acts
from beo.worker import core as workercore
from tests.sim import worker, world

Patch = pytest.MonkeyPatch

# ---- the register, leases, and who acts


def count_a_lease_from_its_receipt(patch: Patch) -> None:
    patch.setattr(Leader, "_until", lambda leader, t: leader._now + leader._lease_s)


def swap_voters_without_a_joint_set(patch: Patch) -> None:
    real = Proposer._propose

    def propose(proposer: Proposer, cfg: Cfg, alone: bool = False) -> None:
        real(proposer, msgspec.structs.replace(cfg, voters=cfg.voters[-1:]), alone)

    patch.setattr(Proposer, "_propose", propose)


class _Anybody(tuple[str, ...]):
    def __contains__(self, member: object) -> bool:
        return True


def let_a_stale_head_stand(patch: Patch) -> None:
    real = Proposer.__init__

    def init(proposer: Proposer, me: str, other: str, kept: pacts.Kept, incarnation: str) -> None:
        real(proposer, me, other, kept, incarnation)
        proposer._members = _Anybody(proposer._members)  # type: ignore[assignment]

    patch.setattr(Proposer, "__init__", init)


def remember_nothing_under_the_same_name(patch: Patch) -> None:
    patch.setattr(world.Simulation, "voter_name", lambda sim, machine: f"{machine.name}/1")


def show_a_promise_before_it_is_durable(patch: Patch) -> None:
    patch.setattr(Proposer, "_say", lambda proposer, effect: proposer._outbox.append((0, effect)))


def keep_the_role_after_a_higher_promise(patch: Patch) -> None:
    real = Pair._prepare

    def prepare(pair: Pair, message: votes.Prepare) -> None:
        with patch.context() as inner:
            inner.setattr(Pair, "_step_down", lambda pair, why: None)
            real(pair, message)

    patch.setattr(Pair, "_prepare", prepare)


def drop_a_value_without_a_majority(patch: Patch) -> None:
    def never(proposer: Proposer, cfg: Cfg) -> bool:
        return cfg.heads == (proposer.other,) and proposer.other not in proposer._promises

    patch.setattr(Proposer, "_was_never_chosen", never)


def take_fresh_voters_with_the_other_head(patch: Patch) -> None:
    real = Proposer._propose

    def propose(proposer: Proposer, cfg: Cfg, alone: bool = False) -> None:
        acc = proposer.acceptor.acc
        if acc and len(acc.isr) == 1 and len(cfg.isr) == 2 and isinstance(proposer, Leader):
            present = {voter: rack for voter, (rack, _) in proposer._present.items()}
            cfg = msgspec.structs.replace(cfg, voters=(choosing.choose(present, (), proposer.me),))
        real(proposer, cfg, alone)

    patch.setattr(Proposer, "_propose", propose)


def win_and_ask_only_once(patch: Patch) -> None:
    real = Pair._tick

    def tick(pair: Pair, item: pacts.Tick) -> None:
        if pair.role != "won":
            real(pair, item)

    patch.setattr(Pair, "_tick", tick)


def give_the_lease_to_whoever_asks(patch: Patch) -> None:
    patch.setattr(Acceptor, "blocks", lambda acceptor, head, now_s: False)


def take_a_value_below_the_promise(patch: Patch) -> None:
    def accept(acceptor: Acceptor, message: votes.Accept) -> votes.Accepted | votes.Refuse:
        cfg = message.cfg
        acceptor.epoch = max(acceptor.epoch, cfg.epoch)
        acceptor.acc = cfg
        return votes.Accepted(acceptor.voter, cfg.epoch, cfg.n)

    patch.setattr(Acceptor, "accept", accept)


def win_with_half_of_the_voters(patch: Patch) -> None:
    def carried(voters: Any, by: Any) -> bool:
        return bool(voters) and all(2 * sum(v in by for v in group) >= len(group) - 1 for group in voters)

    patch.setattr("beo.ha.proposer.carried", carried)


def forget_a_lease_that_was_given(patch: Patch) -> None:
    real = Pair._may_stand

    def may_stand(pair: Pair) -> bool:
        pair._began_s = -1e9
        return real(pair)

    patch.setattr(Pair, "_may_stand", may_stand)
    patch.setattr(Acceptor, "blocks", lambda acceptor, head, now_s: False)
    patch.setattr(Leader, "_patience_s", lambda leader: 0.05)


def keep_that_it_stands_in_a_second_write(patch: Patch) -> None:
    real = Proposer._propose

    def propose(proposer: Proposer, cfg: Cfg, alone: bool = False) -> None:
        keep = proposer._keep

        def late(then: Callable[[], None] | None = None) -> None:
            proposer.chosen = False
            keep(then)

        proposer._keep = late  # type: ignore[method-assign]
        try:
            real(proposer, cfg, alone)
        finally:
            del proposer._keep

    patch.setattr(Proposer, "_propose", propose)


# ---- the log


def commit_alone_while_that_is_only_proposed(patch: Patch) -> None:
    real = Leader._lead

    def lead(leader: Leader) -> None:
        acc = leader.acceptor.acc
        if acc and acc.isr == (leader.me,):
            leader.commit = max(leader.commit, leader._durable)
        real(leader)

    patch.setattr(Leader, "_lead", lead)


def acknowledge_before_the_standby_has_it(patch: Patch) -> None:
    real = Leader._lead

    def lead(leader: Leader) -> None:
        leader.commit = max(leader.commit, leader._durable)
        real(leader)

    patch.setattr(Leader, "_lead", lead)


def say_that_it_is_durable_on_receipt(patch: Patch) -> None:
    real = Pair._answer_append

    def answer(pair: Pair, epoch: int, t: float) -> None:
        durable, pair._durable = pair._durable, pair.log.last.idx
        real(pair, epoch, t)
        pair._durable = durable

    patch.setattr(Pair, "_answer_append", answer)


def compare_indices_alone(patch: Patch) -> None:
    real = Taker.take

    def take(taker: Taker, message: votes.Append, safe: int) -> Any:
        here = taker._log.position(message.previous.idx)
        if here is not None:
            message = msgspec.structs.replace(message, previous=here)
        return real(taker, message, safe)

    patch.setattr(Taker, "take", take)


def believe_what_a_former_standby_had(patch: Patch) -> None:
    def obey(pair: Pair, epoch: int) -> bool:
        pair.leader, pair._heard_primary_s = pair.other, pair._now
        return True

    patch.setattr(Pair, "_hear_primary", obey)


def be_in_step_with_what_is_not_durable(patch: Patch) -> None:
    patch.setattr(Leader, "_is_whole", lambda leader: True)


def answer_before_it_is_durable(patch: Patch) -> None:
    real = headcore.Head.handle

    def handle(head: headcore.Head, item: Any, now: headacts.Now) -> list[headacts.Effect]:
        head._durable = 1 << 60
        return real(head, item, now)

    patch.setattr(headcore.Head, "handle", handle)


def answer_without_a_lease(patch: Patch) -> None:
    real = headcore.Head.handle

    def handle(head: headcore.Head, item: Any, now: headacts.Now) -> list[headacts.Effect]:
        return real(head, item, msgspec.structs.replace(now, may_act=True))

    patch.setattr(headcore.Head, "handle", handle)


def cut_off_what_is_not_committed(patch: Patch) -> None:
    real = Log.truncate

    def truncate(log: Log, position: Any) -> None:
        real(log, log.position(max(log.cut.idx, position.idx - 1)) or position)

    patch.setattr(Log, "truncate", truncate)


# ---- availability


def keep_the_role_with_a_stalled_disk(patch: Patch) -> None:
    real = Leader._lead_on

    def lead_on(leader: Leader, item: pacts.Tick) -> None:
        real(leader, pacts.Tick())

    patch.setattr(Leader, "_lead_on", lead_on)
    patch.setattr(Leader, "_disk_s", lambda leader: 0.0)


def never_hold_for_the_other_head(patch: Patch) -> None:
    patch.setattr(Leader, "holds", property(lambda leader: False))


def wait_for_a_standby_that_takes_nothing(patch: Patch) -> None:
    patch.setattr("beo.ha.leading.STUCK_S", 1e9)


# ---- jobs


def start_what_is_not_committed(patch: Patch) -> None:
    real = headcore.Head._send

    def send(head: headcore.Head, peer: bytes, message: Any, request: int = 0) -> None:
        if isinstance(message, ms.Start):
            head._effects.append(headacts.Send(peer, request, message))
        else:
            real(head, peer, message, request)

    patch.setattr(headcore.Head, "_send", send)


def count_silence_from_before_the_take_over(patch: Patch) -> None:
    def heard(head: headcore.Head, node: str) -> float:
        session = head._sessions.get(node)
        return session.heard_s if session else head._began_s - 10.0

    patch.setattr(headcore.Head, "_heard_s", heard)


def forget_the_keys_of_submissions(patch: Patch) -> None:
    def forget(known: state.State, event: ev.Submitted) -> None:
        known.keys.pop(event.key, None)

    _after(patch, ev.Submitted, forget)


def requeue_what_a_silent_node_may_still_run(patch: Patch) -> None:
    def certain(known: state.State, event: ev.NodeLost) -> None:
        for _, attempt, _ in known.live_parts(event.node).values():
            attempt.leashed = True

    _before(patch, ev.NodeLost, certain)


def requeue_before_the_lease_has_ended(patch: Patch) -> None:
    patch.setattr(headcore, "RHO", -0.3)


def adopt_what_a_node_does_not_name(patch: Patch) -> None:
    real = state._APPLY[ev.NodeJoined]

    def adopt(known: state.State, event: ev.NodeJoined) -> None:
        real(known, msgspec.structs.replace(event, running=tuple(known.live_parts(event.node))))

    patch.setitem(state._APPLY, ev.NodeJoined, adopt)


def obey_a_head_that_was_followed(patch: Patch) -> None:
    real = workercore.Worker._from_head

    def from_head(core: workercore.Worker, message: ms.HeadCommand, head: str, now: acts.Now) -> None:
        core._epoch = min(core._epoch, message.epoch)
        real(core, message, head, now)

    patch.setattr(workercore.Worker, "_from_head", from_head)


def forget_finished_attempts(patch: Patch) -> None:
    real = workercore.Worker._forget

    def forget(core: workercore.Worker, held: workercore.Held) -> None:
        real(core, held)
        core.seen.pop(held.key, None)

    patch.setattr(workercore.Worker, "_forget", forget)


def start_for_an_incarnation_that_was_replaced(patch: Patch) -> None:
    real = workercore.Worker._from_head

    def from_head(core: workercore.Worker, message: ms.HeadCommand, head: str, now: acts.Now) -> None:
        if isinstance(message, ms.Start):
            message = msgspec.structs.replace(message, incarnation=core.incarnation)
        real(core, message, head, now)

    patch.setattr(workercore.Worker, "_from_head", from_head)


def settle_what_may_still_be_started(patch: Patch) -> None:
    real = workercore.Worker._pong

    def pong(core: workercore.Worker, message: ms.Pong, now: acts.Now) -> None:
        real(core, message, now)
        core.seen = {key: index for key, index in core.seen.items() if key in core.held}

    patch.setattr(workercore.Worker, "_pong", pong)


def no_leash(patch: Patch) -> None:
    patch.setattr(worker.Warden, "_watch_leash", lambda warden: None)


def _before(patch: Patch, kind: type, act: Callable[[state.State, Any], None]) -> None:
    real = state._APPLY[kind]

    def both(known: state.State, event: Any) -> None:
        act(known, event)
        real(known, event)

    patch.setitem(state._APPLY, kind, both)


def _after(patch: Patch, kind: type, act: Callable[[state.State, Any], None]) -> None:
    real = state._APPLY[kind]

    def both(known: state.State, event: Any) -> None:
        real(known, event)
        act(known, event)

    patch.setitem(state._APPLY, kind, both)


class Mutant(NamedTuple):
    """One guard that is off, and the scenario in which it is missed.

    first: a seed that misses it, as the cores are now: tried before the others.
    by: the test that misses it, where the simulation does not, for the reason `why`.
    """

    mutate: Callable[[Patch], None]
    first: int = 0
    words: Mapping[str, Any] = MappingProxyType({})
    seeds: int = 250
    by: str = ""
    why: str = ""


ONE = {"heads": 1, "workers": 3}
STALLS = {
    "heads": 2,
    "workers": 3,
    "loss": 0.0,
    "slow": 0.0,
    "level": "C",
    "takeover": "automatic",
    "witness": False,
    "steered": False,
    "failback": False,
    "times_s": (0.6, 0.4),
    "every_s": (6.0, 9.0),
    "kinds": {"stall": 1},
    "prompt_s": 3.4,
}
MUTANTS = [
    Mutant(count_a_lease_from_its_receipt, 60),
    Mutant(
        swap_voters_without_a_joint_set,
        by="tests/test_pair.py::test_voters_change_only_by_both_sets_and_both_heads",
        why="what breaks is two sets whose majorities share nobody, and a cut between their change and its acceptance",
    ),
    Mutant(let_a_stale_head_stand, 5),
    Mutant(remember_nothing_under_the_same_name, 4),
    Mutant(show_a_promise_before_it_is_durable, 0),
    Mutant(
        keep_the_role_after_a_higher_promise,
        by="tests/test_pair.py::test_who_promises_a_higher_epoch_while_it_stands_stands_no_more",
        why="two elections must cross in one order of many, as an exhaustive search found",
    ),
    Mutant(drop_a_value_without_a_majority, 5),
    Mutant(
        take_fresh_voters_with_the_other_head,
        by="tests/test_pair.py::test_the_voters_stay_the_same_when_the_other_head_gets_in_step",
        why="it takes 16 steps in one order, as an exhaustive search found",
    ),
    Mutant(win_and_ask_only_once, 91),
    Mutant(give_the_lease_to_whoever_asks, 70),
    Mutant(take_a_value_below_the_promise, 5),
    Mutant(win_with_half_of_the_voters, 1),
    Mutant(forget_a_lease_that_was_given, 2),
    Mutant(keep_that_it_stands_in_a_second_write, 176, words=ONE),
    Mutant(commit_alone_while_that_is_only_proposed, 3),
    Mutant(acknowledge_before_the_standby_has_it, 0),
    Mutant(say_that_it_is_durable_on_receipt, 0),
    Mutant(compare_indices_alone, 28),
    Mutant(believe_what_a_former_standby_had, 0),
    Mutant(
        be_in_step_with_what_is_not_durable,
        by="tests/test_pair.py::test_a_switchover_that_does_not_come_to_be_is_given_up_and_work_goes_on",
        why="what is lost must be taken, and its primary lost, in the milliseconds before the other head has it, too",
    ),
    Mutant(answer_before_it_is_durable, 0),
    Mutant(answer_without_a_lease, 0),
    Mutant(cut_off_what_is_not_committed, 5),
    Mutant(keep_the_role_with_a_stalled_disk, 2, words=STALLS),
    Mutant(
        never_hold_for_the_other_head,
        by="tests/test_pair.py::test_under_a_steady_stream_new_entries_wait_a_moment_so_that_the_other_gets_in_step",
        why="nothing is lost: the other head gets in step when there is less to do",
    ),
    Mutant(wait_for_a_standby_that_takes_nothing, 5, words=STALLS),
    Mutant(start_what_is_not_committed, 5),
    Mutant(count_silence_from_before_the_take_over, 4),
    Mutant(forget_the_keys_of_submissions, 0),
    Mutant(requeue_what_a_silent_node_may_still_run, 48),
    Mutant(requeue_before_the_lease_has_ended, 0),
    Mutant(adopt_what_a_node_does_not_name, 1),
    Mutant(
        obey_a_head_that_was_followed,
        by="tests/test_worker_core.py::test_a_lower_epoch_is_refused_also_after_a_restart",
        why="a head that was followed has no lease left when its follower begins, so it gives no orders",
    ),
    Mutant(forget_finished_attempts, 3),
    Mutant(
        start_for_an_incarnation_that_was_replaced,
        by="tests/test_worker_core.py::test_a_start_for_another_incarnation_is_refused",
        why="a start for a former incarnation is late, and its attempt or its epoch tells that as well",
    ),
    Mutant(settle_what_may_still_be_started, 26),
    Mutant(no_leash, 82),
]

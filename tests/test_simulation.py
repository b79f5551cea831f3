"""Whatever the network, the machines and the disk do: what was acknowledged is done, and nothing runs twice.

A failing seed is repeated by `Simulation(seed).run()`. The second half switches one guard off at a time and expects a
violation: it shows that the simulation has teeth.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from beo import events as ev
from beo import messages as ms
from beo.headnode import acts as headacts
from beo.headnode import core as headcore
from beo.headnode import state
from beo.worker import acts
from beo.worker import core as workercore
from tests import simulation
from tests.simulation import OPERATIONS, Simulation, Violation

SEEDS = 320
SEEDS_PER_TEST = 20
MUTANT_SEEDS = 240


@pytest.mark.parametrize("first", range(0, SEEDS, SEEDS_PER_TEST))
def test_every_acknowledged_job_ends_and_no_two_attempts_live_together(first: int) -> None:
    ends = 0
    operated: Counter[str] = Counter()
    for seed in range(first, first + SEEDS_PER_TEST):
        try:
            run = Simulation(seed).run()
            ends += run.ends
            operated += run.operated
        except Violation as violation:
            pytest.fail(f"seed {seed}: {violation}")
    assert ends > SEEDS_PER_TEST, "hardly anything ran: nothing was tested"
    assert set(operated) == {kind.__name__ for kind in OPERATIONS}, operated


def test_a_seed_says_everything_that_happens() -> None:
    for seed in (1, 2, 3):
        assert Simulation(seed).run().disk.entries == Simulation(seed).run().disk.entries


# ---- one guard off at a time


def answer_before_it_is_durable(patch: pytest.MonkeyPatch) -> None:
    real = headcore.Head.handle

    def handle(head: headcore.Head, item: Any, now: headacts.Now) -> list[headacts.Effect]:
        head._durable = 1 << 60
        return real(head, item, now)

    patch.setattr(headcore.Head, "handle", handle)


def forget_the_keys_of_submissions(patch: pytest.MonkeyPatch) -> None:
    def forget(known: state.State, event: ev.Submitted) -> None:
        known.keys.pop(event.key, None)

    _after(patch, ev.Submitted, forget)


def requeue_what_a_silent_node_may_still_run(patch: pytest.MonkeyPatch) -> None:
    def certain(known: state.State, event: ev.NodeLost) -> None:
        for _, attempt, _ in known.live_parts(event.node).values():
            attempt.leashed = True

    _before(patch, ev.NodeLost, certain)


def requeue_before_the_lease_has_ended(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(headcore, "RHO", -0.3)


def adopt_what_a_node_does_not_name(patch: pytest.MonkeyPatch) -> None:
    real = state._APPLY[ev.NodeJoined]

    def adopt(known: state.State, event: ev.NodeJoined) -> None:
        real(known, msgspec.structs.replace(event, running=tuple(known.live_parts(event.node))))

    patch.setitem(state._APPLY, ev.NodeJoined, adopt)


def forget_finished_attempts(patch: pytest.MonkeyPatch) -> None:
    real = workercore.Worker._forget

    def forget(worker: workercore.Worker, held: workercore.Held) -> None:
        real(worker, held)
        worker.seen.pop(held.key, None)

    patch.setattr(workercore.Worker, "_forget", forget)


def settle_what_may_still_be_started(patch: pytest.MonkeyPatch) -> None:
    real = workercore.Worker._pong

    def pong(worker: workercore.Worker, message: ms.Pong, now: acts.Now) -> None:
        real(worker, message, now)
        worker.seen = {key: index for key, index in worker.seen.items() if key in worker.held}

    patch.setattr(workercore.Worker, "_pong", pong)


def no_leash(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(simulation.Warden, "_watch_leash", lambda warden: None)


def _before(patch: pytest.MonkeyPatch, kind: type, act: Callable[[state.State, Any], None]) -> None:
    real = state._APPLY[kind]

    def both(known: state.State, event: Any) -> None:
        act(known, event)
        real(known, event)

    patch.setitem(state._APPLY, kind, both)


def _after(patch: pytest.MonkeyPatch, kind: type, act: Callable[[state.State, Any], None]) -> None:
    real = state._APPLY[kind]

    def both(known: state.State, event: Any) -> None:
        real(known, event)
        act(known, event)

    patch.setitem(state._APPLY, kind, both)


MUTANTS = [
    answer_before_it_is_durable,
    forget_the_keys_of_submissions,
    requeue_what_a_silent_node_may_still_run,
    requeue_before_the_lease_has_ended,
    adopt_what_a_node_does_not_name,
    forget_finished_attempts,
    settle_what_may_still_be_started,
    no_leash,
]


@pytest.mark.parametrize("mutate", MUTANTS, ids=lambda mutate: mutate.__name__)
def test_a_guard_that_is_switched_off_is_missed(
    mutate: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_them_all() -> None:
        for seed in range(MUTANT_SEEDS):
            Simulation(seed).run()

    mutate(monkeypatch)
    with pytest.raises(Violation):
        run_them_all()

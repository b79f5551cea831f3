"""The ledger of an attempt's slots: who gets which, who waits, and who is told that it can never be."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beo.worker import steps
from beo.worker.pmi import Effect
from beo.worker.steps import Ledger, Placed, Refused, Run, Waiting, Wish


def ledger(*slots: int, taken: int = 0) -> Ledger:
    """One over nodes a, b, ...; step 0 holds `taken` slots of the first."""
    names = "abcdefgh"[: len(slots)]
    return Ledger(dict(zip(names, slots, strict=True)), {"a": taken}, 1)


def parts(effects: list[Effect]) -> list[Run]:
    """Where the one step that was placed has its ranks."""
    (placed,) = effects
    assert isinstance(placed, Placed), placed
    return placed.parts


@pytest.mark.parametrize(
    ("wish", "expected"),
    [
        (Wish([1]), [("a", 1)]),
        (Wish([3]), [("b", 3)]),  # as few nodes as will do
        (Wish([5]), [("a", 2), ("b", 3)]),
        (Wish([6]), [("a", 2), ("b", 4)]),
        (Wish([2], cpus=2), [("b", 2)]),
        (Wish([3], cpus=2), [("a", 1), ("b", 2)]),
        (Wish([4], nodes=2), [("a", 2), ("b", 2)]),
        (Wish([2], nodes=2), [("a", 1), ("b", 1)]),
        (Wish([5], nodes=2), [("a", 2), ("b", 3)]),
        (Wish([1], on=["b"]), [("b", 1)]),
        (Wish([8, 6, 1]), [("a", 2), ("b", 4)]),  # the best that there is room for
        (Wish([3], on=["a"], overlap=True), [("a", 3)]),
        (Wish([20], overlap=True), [("a", 10), ("b", 10)]),
    ],
)
def test_a_step_is_placed_on_free_slots(wish: Wish, expected: list[Run]) -> None:
    assert parts(ledger(2, 4).ask(("a", 1), [wish])) == expected


def test_steps_and_their_ranks_are_numbered_one_after_another() -> None:
    book = Ledger({"a": 8}, {"a": 4}, 4)
    assert book.ask(("a", 1), [Wish([3])]) == [Placed(("a", 1), 1, 4, [("a", 3)])]
    assert book.ask(("a", 2), [Wish([1])]) == [Placed(("a", 2), 2, 7, [("a", 1)])]
    book.freed(1, ["a"])
    assert book.ask(("a", 3), [Wish([1])]) == [Placed(("a", 3), 3, 8, [("a", 1)])]


def test_who_does_not_fit_waits_in_order_and_a_small_one_never_overtakes() -> None:
    book = ledger(2, 2)
    assert parts(book.ask(("a", 1), [Wish([3])])) == [("a", 2), ("b", 1)]
    (waiting,) = book.ask(("b", 1), [Wish([4])])
    assert waiting == Waiting(("b", 1), "it needs 4 slots, free are 1")
    (behind,) = book.ask(("b", 2), [Wish([1])])
    assert behind == Waiting(("b", 2), "it needs 1 slot, free are 1, and 1 wait before it")
    assert parts(book.ask(("b", 3), [Wish([1], overlap=True)])), "which takes no slots, and so waits for nobody"
    assert book.freed(1, ["a"]) == []
    assert parts(book.freed(1, ["b"])) == [("a", 2), ("b", 2)]
    assert parts(book.freed(3, ["a", "b"])) == [("a", 1)]


def test_who_gives_up_waiting_lets_the_next_one_in() -> None:
    book = ledger(2)
    book.ask(("a", 1), [Wish([1])])
    book.ask(("a", 2), [Wish([2])])
    book.ask(("a", 3), [Wish([1])])
    assert parts(book.cancel(("a", 2))) == [("a", 1)]


def test_the_children_of_the_jobs_own_ranks_are_known_until_the_last_has_ended() -> None:
    book = ledger(2, taken=1)
    assert parts(book.ask(("a", 1), [Wish([1])], family=0)) == [("a", 1)]
    assert book.children
    book.freed(1, ["a"])
    assert not book.children


def test_the_programs_of_one_step_are_placed_one_after_another() -> None:
    effects = ledger(2, 2).ask(("a", 1), [Wish([1], on=["b"]), Wish([2]), Wish([1])])
    assert parts(effects) == [("b", 1), ("a", 2), ("b", 1)]


@pytest.mark.parametrize(
    ("wish", "text"),
    [
        (Wish([5]), "the step needs 5 slots"),
        (Wish([1], on=["x"]), "x is no node of this job"),
        (Wish([3], nodes=3), "the step needs 3 slots on 3 nodes"),
        (Wish([2], on=["a"]), "the step needs 2 slots of a"),
        (Wish([steps.STEP_RANKS_MAX + 1], overlap=True), "a step of 16385 ranks"),
    ],
)
def test_what_can_never_be_is_refused_at_once_and_the_cure_named(wish: Wish, text: str) -> None:
    (refused,) = ledger(2, 2, taken=1).ask(("a", 1), [wish])
    assert isinstance(refused, Refused) and refused.what == text and refused.cure


def test_a_job_without_free_slots_is_told_who_holds_them() -> None:
    (refused,) = ledger(1, taken=1).ask(("a", 1), [Wish([1])])
    assert refused == Refused(
        ("a", 1),
        "the step needs 1 slot",
        "the job has 1 slot on 1 node, and its own ranks hold 1 of them",
        "ask for less, or submit the job with more --slots",
    )


def test_only_so_many_wait() -> None:
    book = ledger(1)
    book.ask(("a", 0), [Wish([1])])
    for n in range(steps.WAITING_MAX):
        assert isinstance(book.ask(("a", n + 1), [Wish([1])])[0], Waiting)
    (refused,) = book.ask(("a", 99_999), [Wish([1])])
    assert isinstance(refused, Refused) and refused.what == "too many steps wait"


ACTS = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.integers(1, 6), st.integers(0, 3), st.integers(1, 3), st.booleans()),
        st.tuples(st.just("end"), st.integers(0, 9)),
        st.tuples(st.just("cancel"), st.integers(0, 9)),
    ),
    max_size=30,
)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=3), ACTS)
def test_no_slot_is_ever_given_away_twice_and_whoever_fits_is_served(slots: list[int], acts: list[tuple]) -> None:  # type: ignore[type-arg]
    book = ledger(*slots)
    room = dict(zip("abcdefgh"[: len(slots)], slots, strict=True))
    wishes: dict[tuple[str, int], Wish] = {}
    alive: dict[int, Placed] = {}
    waiting: list[tuple[str, int]] = []
    for number, act in enumerate(acts):
        if act[0] == "ask":
            who, wish = ("a", number), Wish([act[1]], act[3], act[2], None, act[4])
            wishes[who] = wish
            effects = book.ask(who, [wish])
        elif act[0] == "end" and alive:
            ended = sorted(alive)[act[1] % len(alive)]
            effects = book.freed(ended, {node for node, _ in alive.pop(ended).parts})
        elif act[0] == "cancel" and waiting:
            effects = book.cancel(waiting.pop(act[1] % len(waiting)))
        else:
            continue
        for effect in effects:
            if isinstance(effect, Placed):
                alive[effect.step] = effect
                if effect.who in waiting:
                    assert waiting.pop(0) == effect.who, "in the order of asking"
                assert sum(count for _, count in effect.parts) == wishes[effect.who].counts[0]
                assert len({node for node, _ in effect.parts}) == (wishes[effect.who].nodes or len(effect.parts))
            elif isinstance(effect, Waiting):
                waiting.append(effect.who)
        used: Counter[str] = Counter()
        for placed in alive.values():
            wish = wishes[placed.who]
            used.update({node: 0 if wish.overlap else count * wish.cpus for node, count in placed.parts})
        assert all(used[node] <= room[node] for node in room)
    for step in list(alive):
        for effect in book.freed(step, {node for node, _ in alive.pop(step).parts}):
            assert isinstance(effect, Placed)
            alive[effect.step] = effect
            waiting.remove(effect.who)
    while alive:
        step, placed = alive.popitem()
        for effect in book.freed(step, {node for node, _ in placed.parts}):
            assert isinstance(effect, Placed)
            alive[effect.step] = effect
            waiting.remove(effect.who)
    assert not waiting

"""Who serves whom: everyone gets everything, nobody serves too many, and what is bad is left alone."""

from __future__ import annotations

import random
from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from beo.bulk import choice as module
from beo.bulk.choice import Choice, Picked
from beo.bulk.words import DEAD, GONE, HEAD, LATE, SLOW, WRONG, Bad, Who, name_of
from tests.sim.spread import World

NAMES = [name_of(7, f"{number:064x}") for number in range(100)]
MB = 1 << 20


def make(peers: bool = True) -> Choice:
    return Choice(random.Random(3).randrange, peers)


def ask(choice: Choice, one: str, wants: Sequence[bytes], now_s: float = 1.0, lanes: int = 1, **more: object) -> Picked:
    who = Who(one, f"at-{one}", wants=tuple(wants), lanes=lanes, **more)  # type: ignore[arg-type]
    return choice.handle(who, dict.fromkeys(wants, True), now_s)


def holder(choice: Choice, one: str, names: Sequence[bytes], now_s: float = 1.0) -> None:
    """A node that has these, and has been answered once."""
    ask(choice, one, (), now_s, all=True, gained=tuple(names))
    ask(choice, one, (), now_s)


def servers(picked: Picked) -> list[str]:
    return [pick.server for pick in picked.picks]


def test_the_head_serves_until_its_slots_are_taken_then_peers_do() -> None:
    choice = make()
    first = ask(choice, "a", NAMES[:12], lanes=12, all=True)
    assert servers(first) == [HEAD] * module.HEAD_SLOTS and first.wait_s > 0
    assert servers(ask(choice, "b", NAMES[:1], all=True)) == []
    holder(choice, "c", NAMES[:12])
    second = ask(choice, "b", NAMES[:1], now_s=1.1)
    assert [(pick.server, pick.address) for pick in second.picks] == [("c", "at-c")]


def test_what_nobody_has_comes_from_the_head_and_what_somebody_has_from_him() -> None:
    choice = make()
    holder(choice, "a", NAMES[:3])
    picked = ask(choice, "b", NAMES[:4], lanes=4, all=True)
    assert {pick.name: pick.server for pick in picked.picks} == {NAMES[3]: HEAD, **dict.fromkeys(NAMES[:3], "a")}


def test_several_that_ask_divide_the_slots_of_the_head() -> None:
    choice = make()
    for one in "abcd":
        ask(choice, one, (), all=True)
    assert len(ask(choice, "a", NAMES[:8], lanes=6).picks) == 6
    assert len(ask(choice, "b", NAMES[8:16], lanes=6).picks) == 2
    ask(choice, "a", NAMES[20:], now_s=1.1, lanes=6, gained=tuple(NAMES[:6]))
    assert choice.head_uploads == 2 + 4, "half of the eight for each of two"


def test_a_node_serves_no_more_at_a_time_than_it_should_and_a_lost_fetcher_keeps_no_slot() -> None:
    choice = make(peers=True)
    holder(choice, "a", NAMES[:1])
    given = [ask(choice, f"n{number}", NAMES[:1], all=True) for number in range(40)]
    assert choice.uploads("a") == module.FANOUT and choice.head_uploads == module.HEAD_SLOTS
    assert sum(bool(picked.picks) for picked in given) == module.FANOUT + module.HEAD_SLOTS
    holder(choice, "a", NAMES[:1], now_s=1.0 + module.LEASE_S)  # and nobody else was ever heard again
    assert choice.uploads("a") == choice.head_uploads == 0


def test_who_got_nothing_for_long_goes_to_the_head_though_its_slots_are_taken() -> None:
    choice = make(peers=False)
    for number in range(20):
        ask(choice, f"n{number}", NAMES[:1], all=True)
    assert choice.head_uploads == module.HEAD_SLOTS
    assert not ask(choice, "late", NAMES[:1], now_s=2.0, all=True).picks
    assert servers(ask(choice, "late", NAMES[:1], now_s=2.0 + module.STARVING_S)) == [HEAD]


def test_a_source_that_sent_something_else_is_not_asked_again_until_it_has_looked() -> None:
    choice = make()
    holder(choice, "liar", NAMES[:1])
    assert servers(ask(choice, "a", NAMES[:1], all=True)) == ["liar"]
    again = ask(choice, "a", NAMES[:1], bad=(Bad(NAMES[0], "liar", WRONG),))
    assert servers(again) == [HEAD]
    assert servers(ask(choice, "b", NAMES[:1], all=True)) == [HEAD], "nor is anybody else sent there"
    assert ask(choice, "liar", ()).suspect == (NAMES[0],) and ask(choice, "liar", ()).suspect == ()
    ask(choice, "liar", (), gained=(NAMES[0],))
    assert servers(ask(choice, "c", NAMES[:1], all=True)) == ["liar"], "it has looked, and says that it is right"
    ask(choice, "a", (), bad=(Bad(NAMES[0], HEAD, DEAD),))
    assert servers(ask(choice, "a", NAMES[:1])) == [HEAD], "but who was lied to never goes there again"


def test_a_head_whose_file_is_wrong_is_not_asked_again_by_who_noticed() -> None:
    choice = make()
    ask(choice, "a", NAMES[:1], all=True)
    for why in (WRONG, GONE):
        assert ask(choice, why, NAMES[:1], all=True, bad=(Bad(NAMES[0], HEAD, why),)).picks == ()


def test_who_is_dead_late_or_slow_is_left_alone_for_a_while() -> None:
    for why, times, rest_s in ((DEAD, 1, module.AVOIDED_S), (LATE, 1, module.LATE_S), (SLOW, 3, module.AVOIDED_S)):
        choice = make()
        holder(choice, "p", NAMES)
        for number in range(times):
            assert servers(ask(choice, "a", NAMES[number : number + 1], all=not number)) == ["p"], why
            ask(choice, "a", (), bad=(Bad(NAMES[number], "p", why),))
        ask(choice, "p", (), now_s=1.0 + rest_s / 2)
        assert servers(ask(choice, "a", NAMES[9:10], now_s=1.0 + rest_s - 0.1)) == [HEAD]
        ask(choice, "p", (), now_s=1.0 + rest_s - 0.1)
        assert servers(ask(choice, "b", NAMES[9:10], now_s=1.0 + rest_s, all=True)) == ["p"]


def test_a_node_that_falls_silent_is_forgotten_and_is_told_to_say_all_when_it_comes_back() -> None:
    choice = make()
    holder(choice, "a", NAMES[:5])
    assert servers(ask(choice, "b", NAMES[:1], all=True)) == ["a"]
    later_s = 2.0 + module.SILENT_S
    assert servers(ask(choice, "b", NAMES[1:2], now_s=later_s)) == [HEAD]
    assert ask(choice, "a", (), now_s=later_s).again
    ask(choice, "b", (), now_s=later_s, gained=(NAMES[0],))
    assert choice.uploads("a") == 0


def test_nobody_is_sent_to_who_was_not_answered_yet() -> None:
    """It has no key, and would refuse every ticket."""
    choice = make()
    ask(choice, "a", (), all=True, gained=tuple(NAMES[:1]))
    assert servers(ask(choice, "b", NAMES[:1], all=True)) == [HEAD]


def test_what_is_not_whole_on_the_head_comes_from_peers_alone() -> None:
    choice = make()
    holder(choice, "a", NAMES[:1])
    picked = choice.handle(Who("b", "x", True, wants=tuple(NAMES[:2]), lanes=4), dict.fromkeys(NAMES[:2], False), 1.0)
    assert [(pick.name, pick.server) for pick in picked.picks] == [(NAMES[0], "a")]
    assert picked.wait_s > 0, "the other one is waited for"


def test_an_asker_with_nonsense_breaks_nothing() -> None:
    choice = make()
    holder(choice, "a", NAMES[:3])
    nonsense = (Bad(NAMES[0], "nobody", WRONG), Bad(b"", "", "?"), Bad(NAMES[50], "a", WRONG))
    for lanes in (-5, 0, 1 << 40):
        ask(choice, "b", [*NAMES[:2], *NAMES[:2]], lanes=lanes, lost=(b"x",), gained=(b"y",) * 3, bad=nonsense)
    assert choice.uploads("a") <= module.FANOUT and choice.head_uploads <= module.HEAD_SLOTS


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_everyone_gets_everything_whatever_dies(data: st.DataObject) -> None:
    nodes, chunks = data.draw(st.integers(1, 16)), data.draw(st.integers(1, 20))
    world = World(nodes, chunks, MB, 10e6, data.draw(st.integers(0, 1 << 20)))
    whole_s = chunks * MB / 10e6
    names = list(world.nodes)
    for number in range(data.draw(st.integers(0, 2))):
        some = names[number::3][: data.draw(st.integers(0, nodes // 3))]
        with_word = data.draw(st.booleans())
        world.at(
            data.draw(st.floats(0.05, 2 * whole_s)),
            lambda some=some, with_word=with_word: world.lose(some, with_word),  # type: ignore[misc]
        )
    if data.draw(st.booleans()):
        world.at(data.draw(st.floats(0.05, 2 * whole_s)), lambda: world.kill_head(1.0))
    world.run(10_000.0)
    world.check()


def test_what_two_dozen_nodes_want_leaves_the_head_about_twice() -> None:
    world = World(24, 40, 4 * MB, 117e6, seed=5)
    world.run(1_000.0)
    world.check()
    whole = 40 * 4 * MB
    assert world.head_bytes < 2.5 * whole
    assert world.done_s() < 24 * whole / 117e6 / 8, "an eighth of what the head alone would take"


def test_without_peers_everything_comes_from_the_head() -> None:
    world = World(6, 8, 4 * MB, 117e6, seed=5, peers=False)
    world.run(1_000.0)
    world.check()
    assert (world.head_bytes, world.peer_bytes) == (6 * 8 * 4 * MB, 0)
    assert world.done_s() >= 6 * 8 * 4 * MB / 117e6


def test_one_seed_is_one_course_of_events() -> None:
    courses = []
    for _ in range(2):
        world = World(8, 10, MB, 10e6, seed=11)
        world.at(0.3, lambda world=world: world.kill_head(0.5))  # type: ignore[misc]
        world.run(100.0)
        courses.append(world.course)
    assert courses[0] == courses[1]

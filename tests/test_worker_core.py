"""The worker's core among fakes (fake_node.py): what it takes, tells and keeps, whatever dies or comes late."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from beo import messages as ms
from beo.events import PartResult, RankResult
from beo.settings import WorkerConfig
from beo.worker import acts, core, memory
from tests.fake_node import BULK, EPOCH, JOB, NS, Key, Killed, Node, result


@pytest.fixture
def node(tmp_path: Path) -> Node:
    """A node that has joined and holds a lease."""
    return Node(tmp_path).welcome()


@pytest.fixture
def fresh(tmp_path: Path) -> Node:
    """A node that the head hasn't answered yet."""
    return Node(tmp_path)


# ---- a START is taken once, from the right head, for the right incarnation


def test_a_start_is_written_down_before_it_is_launched(node: Node) -> None:
    effects = node.take(acts.FromHead(node.order()))
    assert [type(effect) for effect in effects] == [acts.Remember, acts.Launch]
    assert node.last_ping().running == (JOB,)


def test_a_repeated_start_is_ignored(node: Node) -> None:
    order = node.order()
    for _ in range(3):
        node.head(order)
    assert len(node.launched) == 1


def test_a_lower_epoch_is_refused_also_after_a_restart(node: Node) -> None:
    node.head(ms.Pong(EPOCH + 2, node.incarnation, node.boot_ns, 3.0, 0))
    node.head(node.order())
    assert not node.launched
    node.restart()
    node.welcome()  # of the head that was followed by another
    node.head(node.order())
    assert not node.launched
    node.head(ms.Pong(EPOCH + 2, node.incarnation, node.boot_ns, 3.0, 0))
    node.head(node.order(epoch=EPOCH + 2))
    assert len(node.launched) == 1


def test_a_start_for_another_incarnation_is_refused(node: Node) -> None:
    node.head(node.order(incarnation="inc-0"))
    assert not node.launched and not node.worker.seen


def test_a_start_before_the_welcome_waits_for_a_lease(fresh: Node) -> None:
    order = fresh.order(requeue="auto")
    fresh.head(order)
    fresh.head(ms.Welcome(EPOCH, fresh.incarnation, BULK))
    fresh.head(order)
    assert not fresh.launched
    fresh.pong()
    fresh.head(order)
    assert [launch.leash_until_ns for launch in fresh.launched] == [fresh.boot_ns + 3 * NS]


def test_a_finished_attempt_never_runs_again_though_its_start_comes_late(node: Node) -> None:
    order = node.order()
    node.head(order)
    node.ends()
    node.commit()
    node.head(order)
    assert len(node.launched) == 1
    assert [gone.job for gone in node.said(ms.Gone)] == [7]


def test_a_finished_attempt_never_runs_again_after_a_restart_of_the_agent(node: Node) -> None:
    order = node.order()
    node.head(order)
    node.ends()
    node.commit()
    node.wardens.clear()
    node.restart()
    node.welcome()
    node.head(order)
    assert len(node.launched) == 1
    assert len(node.said(ms.Gone)) == 1


def test_an_attempt_that_the_head_has_settled_is_neither_remembered_nor_run_again(node: Node) -> None:
    order = node.order()
    node.head(order)
    node.ends()
    node.commit()
    node.pong(settled=order.index)
    assert not node.worker.seen
    node.head(order)
    assert len(node.launched) == 1
    assert not node.said(ms.Gone)


def test_settled_never_forgets_what_still_runs(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "SEEN_LINES_MAX", 1)
    order = node.order()
    node.head(order)
    node.pong(settled=order.index + 10)
    node.memory.compact(node.worker.seen)
    node.ends()
    node.commit()
    node.wardens.clear()
    node.restart()  # `settled` isn't written down
    node.welcome()
    node.head(order)
    assert len(node.launched) == 1


def test_the_memory_of_attempts_stays_small_while_the_head_settles_them(node: Node) -> None:
    for job in range(1, 2_001):
        order = node.order((job, 1))
        node.head(order)
        node.ends((job, 1))
        node.commit((job, 1))
        if job % 10 == 0:
            node.pong(settled=order.index)
    assert len(node.launched) == 2_000
    assert len(node.worker.seen) <= 10


def test_no_start_is_taken_while_the_memory_of_attempts_is_full(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core, "SEEN_MAX", 2)
    for job in (1, 2, 3):
        node.head(node.order((job, 1)))
    assert len(node.launched) == 2
    node.ends((1, 1))
    node.commit((1, 1))
    node.pong(settled=101)
    node.head(node.order((3, 1)))
    assert len(node.launched) == 3


def test_a_start_without_ranks_for_this_node_is_gone_and_nothing_runs(node: Node) -> None:
    node.head(node.order(nodes=("n8", "n9")))
    assert not node.launched
    assert len(node.said(ms.Gone)) == 1


def test_an_agent_killed_between_memory_and_launch_says_gone_and_never_starts_it(node: Node) -> None:
    order = node.order()
    node.kill_before = lambda effect: isinstance(effect, acts.Launch)
    with pytest.raises(Killed):
        node.head(order)
    node.kill_before = lambda _: False
    node.restart()
    node.welcome()
    node.wait(1)
    assert [gone.job for gone in node.said(ms.Gone)] == [7]
    node.commit()
    node.head(order)
    assert not node.launched


def test_a_launch_that_fails_is_gone_with_its_reason(node: Node) -> None:
    node.start()
    node.take(acts.LaunchFailed(*JOB, "no space left on device"))
    (gone,) = node.said(ms.Gone)
    assert gone.reason == "no space left on device"
    assert node.last_ping().ended == (JOB,)


# ---- results


def test_a_result_is_told_again_and_again_until_it_is_committed(node: Node) -> None:
    warden = node.start()
    node.ends(status=3)
    node.wait(3, answered=True)
    told_before = node.said(ms.Ended)
    assert len(told_before) == 4
    assert told_before[0].result == PartResult((RankResult(0, 3, 0.1, 0.0, 4096),))
    assert node.last_ping().ended == (JOB,)
    node.commit()
    node.wait(2, answered=True)
    assert not node.said(ms.Ended)
    assert node.last_ping().ended == ()
    assert node.told(warden, "committed") == [{"op": "committed", "job": 7, "attempt": 1}]


def test_output_is_with_the_head_before_an_end_is_told(node: Node) -> None:
    node.start()
    node.part_says("output", spool_length=100)
    assert not node.shipping[JOB].final
    node.ends(spool_length=250)
    assert (node.shipping[JOB].length, node.shipping[JOB].final) == (250, True)
    node.wait(2, answered=True)
    assert not node.said(ms.Ended)
    assert node.worker._running() == (JOB,)
    node.shipped()
    assert len(node.said(ms.Ended)) == 1


@pytest.mark.parametrize("bundle", ["", "a" * 64], ids=["given up", "done"])
def test_a_copy_of_now_and_then_is_not_the_one_that_is_made_at_the_end(node: Node, bundle: str) -> None:
    node.start()
    node.head(ms.Halt(EPOCH, node.incarnation, *JOB, "drain", ("n1",)))
    node.ends(status=85)
    node.take(acts.Copied(*JOB, bundle, 1, at_end=False))
    assert not node.said(ms.Ended)
    node.take(acts.Copied(*JOB, "b" * 64, 2, at_end=True))
    told = node.said(ms.VaultCopied, ms.Ended)
    assert [type(word) for word in told][-2:] == [ms.VaultCopied, ms.Ended]
    assert told[-2].bundle == "b" * 64
    node.commit()
    assert not node.emptied, "other nodes of it may yet be lost: the head says when it is over"


def test_what_a_node_learns_of_itself_is_told_until_it_is_welcomed_and_nothing_else_changes(node: Node) -> None:
    node.start()
    before = node.incarnation
    node.take(acts.Learned({ms.CRIU: ms.CRIU_WORKS}))
    node.tick()
    node.wait(1)
    joins = node.said(ms.Join)[-2:]
    assert [(join.incarnation, join.facts[ms.CRIU]) for join in joins] == [(before, ms.CRIU_WORKS)] * 2
    node.head(ms.Welcome(EPOCH, before, BULK, learned=0))  # an answer to what it said before it knew
    told = len(node.said(ms.Join))
    node.wait(1)
    assert len(node.said(ms.Join)) > told
    node.head(ms.Welcome(EPOCH, before, BULK, learned=joins[-1].learned))
    told = len(node.said(ms.Join))
    node.wait(2, answered=True)
    assert len(node.said(ms.Join)) == told
    assert node.worker._running() == (JOB,)


def test_a_committed_for_a_part_that_runs_is_ignored(node: Node) -> None:
    warden = node.start()
    node.commit()
    assert not node.told(warden, "committed")
    assert node.last_ping().running == (JOB,)


def test_word_of_output_after_the_end_does_not_hold_the_end_back(node: Node) -> None:
    node.start()
    node.ends()
    node.part_says("output", spool_length=10)
    assert node.last_ping().ended == (JOB,)


def test_a_killed_warden_is_gone_and_its_output_comes_first(node: Node) -> None:
    warden = node.start()
    node.dies(warden, spool_bytes=80)
    assert node.shipping[JOB] == acts.Ship(warden, *JOB, 80, True)
    assert not node.said(ms.Gone)
    node.shipped()
    (gone,) = node.said(ms.Gone)
    assert gone.reason == "its warden was killed"


def test_a_warden_that_dies_after_its_end_was_told_changes_nothing(node: Node) -> None:
    warden = node.start()
    node.ends()
    node.dies(warden)
    node.wait(1, answered=True)
    assert node.said(ms.Ended) and not node.said(ms.Gone)
    node.commit()
    assert not node.worker.held


# ---- the lease


def test_a_lease_is_passed_on_to_leashed_wardens_only(node: Node) -> None:
    leashed, free = node.start((1, 1), requeue="auto"), node.start((2, 1), requeue="confirm")
    assert [launch.leash_until_ns for launch in node.launched] == [node.boot_ns + 3 * NS, 0]
    node.sleep(1)
    node.pong()
    assert node.told(leashed, "leash") == [{"op": "leash", "until_ns": node.boot_ns + 3 * NS}]
    assert not node.told(free, "leash")


def test_where_the_kernel_can_hold_no_leash_there_is_none(tmp_path: Path) -> None:
    node = Node(tmp_path, contain="subreaper").welcome()
    warden = node.start(requeue="auto")
    node.pong()
    assert not node.launched[0].leash_until_ns and not node.told(warden, "leash")


def test_a_lease_is_counted_from_the_sending_of_the_ping(node: Node) -> None:
    sent_ns = node.boot_ns
    node.sleep(2)
    node.pong(sent_ns=sent_ns)
    node.head(node.order((1, 1)))
    assert len(node.launched) == 1
    node.sleep(1)
    node.head(node.order((2, 1)))
    assert len(node.launched) == 1


def test_an_older_pong_does_not_shorten_a_lease_and_an_impossible_one_does_not_stretch_it(node: Node) -> None:
    warden = node.start(requeue="auto")
    node.pong(sent_ns=node.boot_ns - NS)
    node.pong(sent_ns=node.boot_ns + 100 * NS)
    for lease_s in (float("inf"), float("nan"), 1e30, -1.0, 0.0):
        node.head(ms.Pong(EPOCH, node.incarnation, node.boot_ns, lease_s, 0))
    assert not node.told(warden, "leash")


def test_past_the_lease_leashed_parts_are_ended_and_confirmed_before_a_new_incarnation_joins(node: Node) -> None:
    leashed, free = node.start((1, 1), requeue="auto"), node.start((2, 1))
    old = node.incarnation
    node.wait(3)
    assert node.told(leashed, "exit") and not node.told(free, "exit")
    node.said(ms.Join, ms.Ping)
    node.wait(2)
    assert not node.to_head  # not a word while it isn't certain what lives
    node.dies(leashed)
    (join,) = node.said(ms.Join)
    assert join.incarnation == node.incarnation == node.memory.identity.incarnation != old
    assert join.running == ((1, 1), (2, 1))  # (1, 1) has still to be accounted for


def test_a_new_incarnation_is_written_down_before_it_is_told(node: Node) -> None:
    node.start(requeue="confirm")
    old = node.incarnation
    node.kill_before = lambda effect: isinstance(effect, acts.ToHead) and isinstance(effect.message, ms.Join)
    with pytest.raises(Killed):
        node.wait(4)
    node.kill_before = lambda _: False
    node.restart()
    node.tells_state(1)
    assert node.incarnation != old
    node.tick()
    (join,) = node.said(ms.Join)
    assert (join.incarnation, join.running) == (node.incarnation, (JOB,))


def test_an_agent_killed_before_it_wrote_the_new_incarnation_down_is_still_the_old_one(node: Node) -> None:
    old = node.incarnation
    node.kill_before = lambda effect: isinstance(effect, acts.Reborn)
    with pytest.raises(Killed):
        node.wait(4)
    node.kill_before = lambda _: False
    assert not node.said(ms.Join)[1:]  # but for the first
    node.restart()
    assert node.incarnation == old
    node.tick()
    node.dead()  # the head's answer to it
    assert node.incarnation != old


def test_a_part_that_its_leash_ended_is_gone_under_the_new_incarnation_with_its_output_first(node: Node) -> None:
    warden = node.start(requeue="auto")
    node.wait(3)
    node.dies(warden, spool_bytes=80)
    assert node.shipping[JOB] == acts.Ship(warden, *JOB, 80, True)
    node.welcome()
    node.shipped()
    (gone,) = node.said(ms.Gone)
    assert (gone.incarnation, gone.reason) == (node.incarnation, "its leash ran out")


@pytest.mark.parametrize("requeue", ["auto", "confirm"])
def test_a_result_outlives_its_incarnation(node: Node, requeue: str) -> None:
    """Both heads may be down for hours: what ended meanwhile is told when they are back, not run again."""
    node.start(requeue=requeue)
    node.ends(status=3)
    node.wait(600)
    node.said(ms.Join, ms.Ended)
    node.wait(1)
    assert node.said(ms.Join)[-1].running == (JOB,)
    node.welcome()
    node.wait(1)
    assert node.said(ms.Ended)[0].incarnation == node.incarnation
    assert node.last_ping().ended == (JOB,)


def test_hours_without_a_head_cost_one_incarnation(node: Node) -> None:
    node.wait(60)
    assert (node.incarnation, next(node.names)) == ("inc-2", "inc-3")
    assert len(node.said(ms.Join)) > 100


def test_you_are_dead_ends_what_is_leashed_and_keeps_the_rest(node: Node) -> None:
    leashed, free = node.start((1, 1), requeue="auto"), node.start((2, 1))
    old = node.incarnation
    node.said(ms.Join)
    node.dead()
    node.dead()
    assert len(node.told(leashed, "exit")) == 1 and node.incarnation == old
    node.dies(leashed)
    assert node.incarnation != old
    assert node.said(ms.Join)[0].running == ((1, 1), (2, 1))
    assert not node.told(free, "exit")


def test_dead_for_an_older_incarnation_is_ignored(node: Node) -> None:
    node.dead()
    incarnation = node.incarnation
    node.dead("inc-1")
    assert node.incarnation == incarnation


def test_while_it_dies_a_node_obeys_nothing_and_says_nothing(node: Node) -> None:
    node.start(requeue="auto")
    node.dead()
    node.to_head.clear()
    node.head(node.order((8, 1)))
    node.kill((9, 1))
    node.pong()
    node.wait(5)
    assert len(node.launched) == 1 and not node.to_head


def test_an_agent_killed_while_it_dies_dies_again(node: Node) -> None:
    warden = node.start(requeue="auto")
    old = node.incarnation
    node.dead()
    node.restart()
    node.tells_state(warden)
    node.tick()
    assert node.said(ms.Join)[0].incarnation == old
    node.dead()
    assert node.incarnation == old
    node.dies(warden)
    assert node.incarnation != old


def test_an_agent_that_wakes_past_its_lease_takes_no_start_from_its_queue(node: Node) -> None:
    pinged_ns = node.boot_ns
    node.sleep(10)
    node.head(ms.Pong(EPOCH, node.incarnation, pinged_ns, 3.0, 0))
    node.head(node.order((1, 1), requeue="auto"))
    node.head(node.order((2, 1)))
    old = node.incarnation
    node.tick()
    assert not node.launched and node.incarnation != old


def test_an_agent_that_wakes_to_a_pong_in_time_goes_on(node: Node) -> None:
    node.sleep(1)
    pinged_ns = node.boot_ns
    node.sleep(2.5)  # past the lease that it knew of, but not past the one that waits to be read
    node.pong(sent_ns=pinged_ns)
    node.tick()
    node.start()
    assert node.incarnation == "inc-1" and len(node.launched) == 1


def test_a_restarted_agent_puts_no_leash_on_before_it_has_a_lease_again(node: Node) -> None:
    warden = node.start(requeue="auto")
    node.restart()
    node.tells_state(warden)
    assert not node.told(warden, "leash")
    node.welcome()
    assert node.told(warden, "leash") == [{"op": "leash", "until_ns": node.boot_ns + 3 * NS}]


# ---- kills and signals


def test_a_kill_ends_the_part_with_the_heads_reason(node: Node) -> None:
    warden = node.start()
    node.kill()
    expected = {"op": "end", "job": 7, "attempt": 1, "reason": "ended: cancelled by ada", "grace_s": 5.0}
    assert node.told(warden, "end") == [expected]


def test_a_kill_for_what_is_not_here_is_gone_and_its_start_is_never_taken(node: Node) -> None:
    order = node.order()
    node.kill()
    assert len(node.said(ms.Gone)) == 1
    node.pong(settled=order.index - 1)  # as far as the head gets while it hasn't heard that
    node.head(order)
    assert not node.launched


def test_a_kill_for_what_is_not_here_is_remembered_by_the_next_agent(node: Node) -> None:
    order = node.order()
    node.kill()
    node.restart()
    node.welcome()
    node.pong(settled=order.index - 1)
    node.head(order)
    assert not node.launched


def test_what_was_ruled_out_is_written_down_before_gone_is_told(node: Node) -> None:
    effects = node.take(acts.FromHead(ms.Kill(EPOCH, node.incarnation, 5, 1, "", 0.0)))
    assert [type(effect) for effect in effects] == [acts.Seen, acts.ToHead]


def test_a_signal_is_delivered_only_when_a_warden_has_it(node: Node) -> None:
    warden = node.start()
    node.head(ms.Deliver(EPOCH, node.incarnation, *JOB, 1, 15))
    assert node.told(warden, "signal") == [{"op": "signal", "job": 7, "attempt": 1, "serial": 1, "signal": 15}]
    assert node.said(ms.Delivered)[0].serial == 1


def test_a_signal_for_a_part_that_is_over_counts_as_delivered(node: Node) -> None:
    warden = node.start()
    node.ends()
    node.head(ms.Deliver(EPOCH, node.incarnation, *JOB, 1, 15))
    assert not node.told(warden, "signal") and len(node.said(ms.Delivered)) == 1


# ---- an agent comes back


def test_a_new_agent_says_nothing_until_every_warden_has_told_its_state(node: Node) -> None:
    one, other = node.start((1, 1)), node.start((2, 1))
    node.restart()
    node.tells_state(one, (1, 1))
    node.wait(5)
    node.kill((3, 1))
    assert not node.to_head
    node.tells_state(other, (2, 1))
    node.tick()
    assert node.said(ms.Join)[0].running == ((1, 1), (2, 1))


def test_wardens_that_answer_are_adopted_with_output_and_results(node: Node) -> None:
    running, ended = node.start((1, 1)), node.start((2, 1))
    node.restart()
    node.tells_state(running, (1, 1), spool_length=10)
    node.tells_state(ended, (2, 1), ended=True, spool_length=20)
    node.welcome()
    assert (node.shipping[1, 1].final, node.shipping[2, 1].final) == (False, True)
    node.shipped((2, 1))
    assert [told_end.job for told_end in node.said(ms.Ended)] == [2]
    assert len(node.launched) == 2
    node.kill((1, 1))
    assert node.told(running, "end")


def test_a_warden_that_does_not_answer_any_more_is_gone_with_its_output_first(node: Node) -> None:
    warden = node.start()
    node.restart()
    node.worker.launched(JOB, warden)  # the agent found the folder that it left
    node.dies(warden, spool_bytes=30)
    node.welcome()
    assert node.shipping[JOB] == acts.Ship(warden, *JOB, 30, True)
    node.shipped()
    assert len(node.said(ms.Gone)) == 1


def test_an_order_without_any_warden_is_gone(node: Node) -> None:
    node.start()
    node.wardens.clear()
    node.restart()
    node.welcome()
    node.wait(1)
    assert node.said(ms.Gone)[0].reason == "its warden has gone"


def test_a_warden_without_an_order_is_ended_and_nothing_is_said_until_it_has_gone(node: Node) -> None:
    warden = node.start()
    node.memory.drop(*JOB)
    node.restart()
    node.tells_state(warden)
    assert node.told(warden, "exit")
    node.wait(5)
    assert not node.to_head
    node.dies(warden)
    node.tick()
    assert node.said(ms.Join)[0].running == ()


def test_a_part_that_was_declared_gone_and_shows_up_again_is_ended(node: Node) -> None:
    warden = node.start()
    node.take(acts.WardenClosed(warden, 0))
    node.to_head.clear()
    node.tells_state(warden)
    assert node.told(warden, "exit")
    node.wait(0.5)
    assert not node.to_head


def test_a_warden_that_connects_again_after_its_end_still_hears_the_commit(node: Node) -> None:
    warden = node.start()
    node.ends()
    node.take(acts.WardenClosed(warden, 0))
    node.tells_state(warden, ended=True)
    node.commit()
    assert node.told(warden, "committed")


def test_after_a_reboot_a_node_knows_nothing_and_has_another_incarnation(node: Node) -> None:
    node.start()
    old = node.incarnation
    node.reboot()
    node.tick()
    (join,) = node.said(ms.Join)
    assert join.incarnation != old and join.running == ()


def test_an_idle_warden_is_used_again_for_one_rank_but_never_for_several(node: Node) -> None:
    warden = node.start((1, 1))
    node.ends((1, 1))
    node.commit((1, 1))
    node.hear(warden, "idle")
    assert node.start((2, 1), nodes=("n1", "n2")) != warden
    assert node.start((3, 1)) == warden


def test_a_warden_that_holds_a_part_is_never_idle(node: Node) -> None:
    warden = node.start((1, 1))
    node.hear(warden, "idle")
    node.tells_state(warden, key=None)  # a spare's first word, overtaken by its order
    assert node.start((2, 1)) != warden


def test_idle_wardens_beyond_the_limit_are_ended(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core, "IDLE_MAX", 1)
    node.wardens |= {50: [], 51: []}
    node.hear(50, "idle")
    node.hear(51, "idle")
    assert not node.told(50, "exit") and node.told(51, "exit")


def test_an_idle_warden_that_dies_is_not_used(node: Node) -> None:
    node.wardens[50] = []
    node.hear(50, "idle")
    node.dies(50)
    assert node.start() != 50


# ---- the other parts


def test_wardens_talk_to_each_other_through_their_agents(node: Node) -> None:
    warden = node.start(nodes=("n1", "n2"))
    node.part_says("peer", to="n2", seq=1, body={"fence": 1, "puts": {"a": "b"}})
    ((name, relay),) = node.to_peer(ms.Relay)
    assert (name, relay.node, relay.seq) == ("n2", "n1", 1)
    node.peer(ms.RelayAck("n2", *JOB, 1))
    node.peer(ms.Relay("n2", *JOB, 1, relay.body))
    assert [m["op"] for m in node.wardens[warden]] == ["peer_ack", "peer"]
    assert node.wardens[warden][1]["body"] == {"fence": 1, "puts": {"a": "b"}}
    assert node.wardens[warden][1]["from"] == "n2"
    node.part_says("peer_ack", to="n2", seq=1)
    assert node.to_peer(ms.RelayAck) == [("n2", ms.RelayAck("n1", *JOB, 1))]


def test_words_of_strangers_and_words_that_are_none_reach_no_warden(node: Node) -> None:
    warden = node.start(nodes=("n1", "n2"))
    for sender in ("n1", "n3"):
        node.peer(ms.Relay(sender, *JOB, 1, b"{}"))
    for body in (b"", b"[]", b'"\xff"', b'{"a": "\xff"}'):
        node.peer(ms.Relay("n2", *JOB, 1, body))
    node.peer(ms.Relay("n2", 99, 1, 1, b"{}"))
    node.part_says("peer", to="n1", seq=1, body={})
    node.part_says("peer", to="n3", seq=1, body={})
    assert not node.wardens[warden] and not node.to_peer(ms.Relay)


def test_a_probe_is_answered_on_its_channel_and_an_answer_is_not(node: Node) -> None:
    node.peer(ms.Probe("n2", "inc"), channel=b"c")
    node.peer(ms.Probe("n2", "inc"))
    assert node.answers == [ms.Probe("n1", node.incarnation)]


def test_a_word_in_the_name_of_another_node_counts_for_nothing(node: Node) -> None:
    warden = node.start(nodes=("n1", "n2"))
    node.peer(ms.Relay("n2", *JOB, 1, b"{}"), key="of-n3")
    node.peer(ms.RelayAck("n2", *JOB, 1), key="of-n3")
    for _ in range(5):
        node.peer(ms.Probe("n2", "inc"), key="of-n3")
        node.wait(1, answered=True)
    assert {end["reason"] for end in node.told(warden, "end")} == {"silence: n2 is silent"}
    assert not node.told(warden, "peer") and not node.told(warden, "peer_ack")


def test_an_agent_knows_the_keys_of_those_it_shares_an_attempt_with_and_no_longer_than_it_does(node: Node) -> None:
    assert not node.worker.knows("k")
    warden = node.start(nodes=("n1", "n2"))
    assert node.worker.knows("k") and not node.worker.knows("of-n3")
    node.hear(warden, "ended", job=JOB[0], attempt=JOB[1], result=result(), spool_length=0)
    node.head(ms.Committed(EPOCH, *JOB))
    assert not node.worker.knows("k")


def test_the_silence_of_a_peer_ends_the_part(node: Node) -> None:
    warden = node.start(nodes=("n1", "n2", "n3"))
    for _ in range(5):
        node.peer(ms.Probe("n2", "inc"))
        node.wait(1, answered=True)
    node.wait(0.5, answered=True)
    ends = node.told(warden, "end")
    assert ends and {end["reason"] for end in ends} == {"silence: n3 is silent"}
    assert {name for name, _ in node.to_peer(ms.Probe)} == {"n2", "n3"}


def test_a_peer_that_is_back_within_the_limit_ends_nothing(node: Node) -> None:
    warden = node.start(nodes=("n1", "n2"))
    for _ in range(4):
        node.wait(3.5, answered=True)
        node.peer(ms.Probe("n2", "inc"))
    assert not node.told(warden, "end")


def test_an_agent_that_was_away_itself_does_not_take_that_for_its_peers_silence(node: Node) -> None:
    warden = node.start(nodes=("n1", "n2"))
    node.wait(2, answered=True)
    node.sleep(2.9)
    node.tick()
    node.pong()
    node.peer(ms.Probe("n2", "inc"))
    node.wait(2, answered=True)
    assert not node.told(warden, "end")
    node.restart()
    node.tells_state(warden)
    node.welcome()
    node.wait(3.5, answered=True)
    assert not node.told(warden, "end")


def test_a_short_limit_of_silence_has_questions_that_are_close_enough(tmp_path: Path) -> None:
    node = Node(tmp_path, config=WorkerConfig(lease_s=3.0, peer_silence_s=2.0)).welcome()
    warden = node.start(nodes=("n1", "n2"))
    for _ in range(40):
        node.wait(0.25, answered=True)
        for _ in node.to_peer(ms.Probe):
            node.peer(ms.Probe("n2", "inc"))
    assert not node.told(warden, "end")


def test_a_part_of_one_node_asks_nobody(node: Node) -> None:
    node.start()
    node.wait(5, answered=True)
    assert not node.to_peers


# ---- input


def test_stdin_reaches_the_warden_and_what_it_took_the_client(node: Node) -> None:
    warden = node.start()
    node.take(acts.StdinCame(ms.Stdin(*JOB, 0, b"\x00\xff", True, (7, 8))))
    expected = {"op": "stdin", "job": 7, "attempt": 1, "offset": 0, "data": "AP8=", "eof": True, "window": [7, 8]}
    assert node.told(warden, "stdin") == [expected]
    node.part_says("stdin", have=2, closed=False, window=[7, 8])
    assert node.stdin == [acts.StdinTaken(*JOB, 2, False, (7, 8))]


def test_stdin_for_a_part_that_is_over_is_answered_closed(node: Node) -> None:
    node.start()
    node.ends()
    node.take(acts.StdinCame(ms.Stdin(*JOB, 5, b"x", False)))
    node.commit()
    node.take(acts.StdinCame(ms.Stdin(*JOB, 6, b"x", False)))
    assert node.stdin == [acts.StdinTaken(*JOB, 5, True), acts.StdinTaken(*JOB, 6, True)]


def test_stdin_that_overtakes_its_start_is_left_to_be_repeated(node: Node) -> None:
    node.take(acts.StdinCame(ms.Stdin(*JOB, 0, b"x", False)))
    assert not node.stdin


# ---- nonsense


@pytest.mark.parametrize(
    "words",
    [
        {},
        {"op": "output"},
        {"op": "output", "job": 7, "attempt": 1, "spool_length": -1},
        {"op": "output", "job": "7", "attempt": 1, "spool_length": 1},
        {"op": "ended", "job": 7, "attempt": 1},
        {"op": "ended", "job": 7, "attempt": 1, "result": None},
        {"op": "ended", "job": 7, "attempt": 1, "result": {"ranks": [{}]}},
        {"op": "ended", "job": 7, "attempt": 1, "result": {**result(), "ranks": 5}},
        {"op": "stdin", "job": 7, "attempt": 1, "have": None, "closed": 1},
        {"op": "peer", "job": 7, "attempt": 1, "to": [], "seq": 1, "body": {}},
        {"op": "peer_ack", "job": 7, "attempt": 1, "to": "n2", "seq": 1 << 70},
        {"op": "state"},
        {"op": "state", "phase": "dancing"},
        {"op": "state", "phase": "running", "job": None},
        {"op": ["idle"]},
        {"op": "hello", "version": 2},
        {"op": "a word of a later version", "job": {}},
    ],
)
def test_nonsense_of_a_warden_ends_that_warden_at_most(node: Node, words: dict[str, Any]) -> None:
    other = node.start((8, 1))
    warden = node.start()
    node.take(acts.FromWarden(warden, words))
    node.take(acts.FromWarden(99, words))  # one that isn't known
    if node.told(warden, "exit"):
        node.dies(warden)
        node.take(acts.WardenClosed(99, 0))
        assert [gone.job for gone in node.said(ms.Gone)] == [7]
    assert not node.told(other, "exit")
    assert (8, 1) in node.last_ping().running


def test_a_new_agent_is_not_held_up_by_a_warden_that_talks_nonsense(node: Node) -> None:
    warden = node.start()
    node.restart()
    node.hear(warden, "state", phase="dancing")
    assert node.told(warden, "exit")
    node.dies(warden)
    node.welcome()
    node.wait(1)
    assert len(node.said(ms.Gone)) == 1


def test_a_word_about_another_attempt_than_the_wardens_is_ignored(node: Node) -> None:
    warden = node.start()
    node.hear(warden, "ended", job=8, attempt=1, result=result())
    node.hear(warden, "output", job=7, attempt=2, spool_length=5)
    assert not node.said(ms.Ended) and not node.shipping


# ---- killed anywhere


class Head:
    """A head that knows one node, repeats itself, and believes what it is told."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.orders = {key: node.order(key, requeue) for key, requeue in (((1, 1), "auto"), ((2, 1), "confirm"))}
        self.live = set(self.orders)
        self.killed = {(3, 1)}  # ended before its START was sent
        self.sent: list[ms.Start] = []
        self.incarnation = node.incarnation

    def turn(self) -> None:
        """Hear and answer all that the node has said."""
        node = self.node
        words, node.to_head = node.to_head, []
        for word in words:
            if isinstance(word, ms.Join):
                if word.incarnation != self.incarnation:
                    self.lose(self.live - set(word.running))
                    self.incarnation = word.incarnation
                node.head(ms.Welcome(EPOCH, word.incarnation, BULK))
            elif word.incarnation == self.incarnation:
                self.hear(word)

    def hear(self, word: ms.AgentReport) -> None:
        node = self.node
        if isinstance(word, ms.Ping):
            node.pong(sent_ns=word.t_ns)
            for key in sorted(self.live - set(word.running) - set(word.ended)):
                self.sent.append(msgspec.structs.replace(self.orders[key], incarnation=self.incarnation))
                node.head(self.sent[-1])
            for key in sorted(self.killed):
                node.kill(key)
        elif isinstance(word, ms.Ended | ms.Gone):
            self.lose({(word.job, word.attempt)})
            node.commit((word.job, word.attempt))

    def lose(self, keys: set[Key]) -> None:
        """Take parts for certainly over."""
        assert not keys & set(self.node.alive().values()), "declared over while it lives"
        self.live -= keys
        self.killed -= keys


def live_through(node: Node) -> None:
    """A life: two parts start, a third is ruled out, one ends, the head is away, the leash ends the other."""
    head = Head(node)
    for n in range(60):
        node.wardens_turn(ends=(2, 1) if n > 8 else None)
        if 20 <= n < 40:  # the head is away
            node.to_head.clear()
        head.turn()
        node.sleep(0.25)
        node.tick()
    assert not head.live and not head.killed and not node.worker.held
    for order in head.sent:  # late duplicates
        node.head(order)
    assert sorted(launch.order.job for launch in node.launched) in ([], [1], [2], [1, 2])


def test_an_agent_may_be_killed_between_any_two_acts(tmp_path: Path) -> None:
    calm = Node(tmp_path / "calm")
    live_through(calm)
    assert len(calm.launched) == 2
    for act in range(calm.acts):
        node = Node(tmp_path / str(act))
        node.kill_at = act
        live_through(node)


# ---- looks and signals for the head


def test_a_look_names_the_wardens_of_what_lives_here_and_of_nothing_else(node: Node) -> None:
    node.head(node.order())
    inspect = ms.Inspect(EPOCH, node.incarnation, 5, (JOB, (99, 1)), 100)
    strike = ms.Strike(EPOCH, node.incarnation, 6, "key", 9, ((JOB[1], ms.Target(JOB[0], "n1", 5)),))
    warden = node.worker.held[JOB].warden
    assert warden
    for message in (inspect, strike):
        assert node.take(acts.FromHead(message)) == [acts.LookInside(message, ((*JOB, warden),))]
    node.ends()
    assert node.take(acts.FromHead(inspect)) == [acts.LookInside(inspect, ())]


# ---- two heads: signs of life to both, everything else to the one that acts

A, B = "10.0.0.1:7420", "10.0.0.2:7420"
PAIR = (ms.HeadView("A", A, "10.0.0.1:7421", ()), ms.HeadView("B", B, "10.0.0.2:7421", ()))


def takes_over(node: Node, head: str, epoch: int) -> None:
    """A head begins to act, and answers a PING of this moment."""
    node.head(ms.Welcome(epoch, node.incarnation, f"bulk of {head}", PAIR), head)
    node.head(ms.Pong(epoch, node.incarnation, node.boot_ns, 3.0, 0), head)


@pytest.fixture
def paired(fresh: Node) -> Node:
    """A node of two heads, the first of which acts."""
    fresh.tick()
    takes_over(fresh, A, EPOCH)
    return fresh


def whom(node: Node, *kinds: type) -> list[tuple[str, str]]:
    """What was said to which head since the last time it was asked for this: (head, kind)."""
    said, node.to_whom = node.to_whom, []
    return [(head, type(message).__name__) for head, message in said if isinstance(message, kinds)]


def test_signs_of_life_go_to_every_head_and_reports_to_the_one_that_acts(paired: Node) -> None:
    paired.start()
    paired.wait(1.0)
    paired.ends()
    said = whom(paired, ms.Join, ms.Ping, ms.Ended)
    assert said[0] == ("", "Join") and ("", "Ping") in said
    assert {word for word in said if word[1] == "Ended"} == {(A, "Ended")}
    assert paired.followed[-1] == acts.Follow(f"bulk of {A}", PAIR)


def test_a_new_primary_adopts_what_runs_and_is_told_at_once_what_has_ended(paired: Node) -> None:
    paired.start((7, 1))
    paired.start((8, 1))
    paired.ends((7, 1))
    whom(paired, object)
    takes_over(paired, B, EPOCH + 1)
    assert ("10.0.0.2:7420", "Ended") in whom(paired, object)
    assert paired.last_ping().running == ((8, 1),) and len(paired.launched) == 2
    paired.head(ms.Committed(EPOCH + 1, 7, 1), B)
    assert (7, 1) not in paired.worker.held


def test_the_old_primary_is_refused_once_another_has_shown_itself(paired: Node) -> None:
    paired.start()
    takes_over(paired, B, EPOCH + 1)
    for word in (
        ms.Kill(EPOCH, paired.incarnation, *JOB, "by the old one", 0.0),
        ms.Dead(EPOCH, paired.incarnation),
        ms.Welcome(EPOCH, paired.incarnation, "old bulk"),
        paired.order((9, 1)),
    ):
        assert paired.take(acts.FromHead(word, A)) == []
    assert paired.worker.primary == B and paired.last_ping().running == (JOB,)


def test_a_head_that_rises_is_told_at_once_what_runs_and_one_of_the_past_is_not(paired: Node) -> None:
    paired.start()
    paired.pings()
    whom(paired, object)
    paired.take(acts.Rises(B, EPOCH + 1))
    assert whom(paired, object) == [(B, "Ping")]
    assert paired.pings()[0].running == (JOB,)
    takes_over(paired, B, EPOCH + 1)
    whom(paired, object)
    for head, epoch in ((A, EPOCH), (B, EPOCH + 1)):  # the lease that it holds is renewed all the time
        paired.take(acts.Rises(head, epoch))
    assert whom(paired, object) == []


def test_a_ping_for_one_head_does_not_delay_the_next_one_for_all(paired: Node) -> None:
    paired.wait(0.25)
    whom(paired, object)
    paired.take(acts.Rises(B, EPOCH + 1))
    paired.wait(0.25)
    assert whom(paired, ms.Ping) == [(B, "Ping"), ("", "Ping")]


def test_a_lease_counts_from_the_ping_that_its_head_has_answered(paired: Node) -> None:
    """Two heads answer different PINGs, late and out of order: no answer makes more of one than its own PING's time."""
    early = paired.boot_ns
    paired.start(requeue="auto")
    paired.sleep(1.0)
    paired.tick()  # a PING for both, which only B answers, and late
    late = paired.boot_ns
    paired.sleep(1.5)
    paired.head(ms.Pong(EPOCH + 1, paired.incarnation, late, 3.0, 0), B)
    paired.head(ms.Pong(EPOCH, paired.incarnation, paired.boot_ns, 3.0, 0), A)  # who was followed has none to give
    paired.head(ms.Pong(EPOCH + 1, paired.incarnation, early, 3.0, 0), B)
    warden = paired.worker.held[JOB].warden
    assert [told["until_ns"] for told in paired.told(warden, "leash")] == [late + 3 * NS]
    paired.sleep((late - paired.boot_ns) / NS + 3.0)
    paired.tick()
    assert paired.told(warden, "exit"), "its lease has run out"


def test_a_primary_whose_welcome_was_lost_is_asked_for_it_before_it_is_told_anything(paired: Node) -> None:
    paired.start()
    whom(paired, object)
    paired.head(ms.Pong(EPOCH + 1, paired.incarnation, paired.boot_ns, 3.0, 0), B)
    paired.ends()
    assert whom(paired, object) == [(B, "Join")]
    paired.head(ms.Welcome(EPOCH + 1, paired.incarnation, f"bulk of {B}", PAIR), B)
    assert whom(paired, object) == [(B, "Ended")]


def test_output_that_the_old_primary_had_is_offered_to_the_new_one_before_the_end_is_told(paired: Node) -> None:
    paired.start()
    paired.ends(spool_length=10)
    paired.shipped()
    assert (A, "Ended") in whom(paired, object)
    paired.shipping.clear()
    takes_over(paired, B, EPOCH + 1)
    assert paired.shipping[JOB].length == 10 and paired.shipping[JOB].final
    assert (B, "Ended") not in whom(paired, object)
    paired.shipped()
    assert (B, "Ended") in whom(paired, object)


def test_a_head_that_lacks_entries_gets_its_new_starts_run_and_hears_of_old_ones_that_they_are_over(
    paired: Node,
) -> None:
    """A forced head, or one of level A, counts on from fewer entries: what was settled was said of others."""
    old = paired.order((7, 1))
    paired.head(old)
    paired.ends()
    paired.commit()
    paired.pong(settled=old.index + 50)
    assert not paired.worker.seen
    whom(paired, object)
    paired.head(ms.Welcome(EPOCH + 1, paired.incarnation, f"bulk of {B}", PAIR, old.index + 2), B)
    paired.head(ms.Pong(EPOCH + 1, paired.incarnation, paired.boot_ns, 3.0, old.index - 1), B)
    paired.head(msgspec.structs.replace(old, epoch=EPOCH + 1), B)  # as if it had never been answered
    assert [(gone.job, gone.attempt) for gone in paired.said(ms.Gone)] == [(7, 1)]
    paired.head(msgspec.structs.replace(paired.order((9, 1)), epoch=EPOCH + 1, index=old.index + 3), B)
    assert [launch.order.job for launch in paired.launched] == [7, 9]


def test_the_same_head_in_its_next_life_gets_no_output_again(paired: Node) -> None:
    paired.start()
    paired.ends(spool_length=10)
    paired.shipped()
    paired.shipping.clear()
    whom(paired, object)
    takes_over(paired, A, EPOCH + 2)
    assert not paired.shipping and (A, "Ended") in whom(paired, object)


def test_a_signal_of_a_head_that_was_followed_or_for_another_incarnation_is_not_carried_out(node: Node) -> None:
    node.head(node.order())
    target = ((JOB[1], ms.Target(JOB[0], "n1", 5)),)
    assert not node.take(acts.FromHead(ms.Strike(EPOCH - 1, node.incarnation, 6, "key", 9, target)))
    assert not node.take(acts.FromHead(ms.Strike(EPOCH, "another", 6, "key", 9, target)))

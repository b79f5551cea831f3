"""Two heads as a pair: who acts, when the other takes over, and what never happens. One test per promise."""

import msgspec
import pytest

from beo import messages as ms
from beo import votes
from beo.entries import Position
from beo.errors import Conflict, Internal
from beo.ha import acts as pacts
from beo.ha import leading, pair
from beo.ha.voters import ALIVE_S, holder
from beo.headnode import acts
from beo.votes import Accept, Append, Appended, HandOver, Part, Prepare, Present, Promise
from tests.pairs import FSYNC_S, TICK_S, Two, of
from tests.world import ACCOUNT

LEASE_S, SILENCE_S = votes.PairSettings().lease_s, votes.PairSettings().silence_s
A_WHILE_S = 3.0  # by far longer than any election takes


@pytest.fixture
def two() -> Two:
    """A acts, B is in step, three workers vote."""
    two = Two()
    two.settle()
    assert two.primary == "A"
    return two


# ---- take-over


def test_the_standby_takes_over_when_the_primary_dies_and_no_acknowledged_job_is_lost(two: Two) -> None:
    job = two.submit()
    died_s = two.now_s
    two.kill("A")
    assert two.wait(lambda: two.acting == ["B"], A_WHILE_S), two.story()
    assert two.now_s - died_s < 1.0
    assert job in two.boxes["B"].replica.state.jobs
    assert two.submit("B") == job + 1


def test_nobody_takes_over_while_the_leases_of_the_voters_run(two: Two) -> None:
    died_s = two.now_s
    two.kill("A")
    assert two.wait(lambda: "B" in two.acting, A_WHILE_S)
    assert two.now_s - died_s >= LEASE_S - 2 * TICK_S, "the last lease was asked for just before"


def test_cut_from_each_other_the_primary_goes_on_with_the_voters(two: Two) -> None:
    two.cut("A", "B")
    for _ in range(20):
        two.run(0.5)
        assert two.acting == ["A"]
        assert two.submit("A")
    assert two["B"].role == "candidate" and not two["B"]._trying, "its pre-vote is refused"
    assert two["B"].acceptor.epoch == two["A"].epoch, "and disturbs nobody"
    two.heal()
    two.settle()
    assert two.primary == "A"
    assert len(two.when("primary")) == 1


def test_a_primary_without_standby_and_voters_stops_acting_before_the_other_begins(two: Two) -> None:
    two.isolate("A")
    assert two.wait(lambda: not two.acting, LEASE_S + TICK_S), "its leases have run out"
    assert two.wait(lambda: two.acting == ["B"], A_WHILE_S)
    two.run(A_WHILE_S)  # whether both act at once is looked at all the time
    assert two["A"].role == "primary", "it knows no better"
    two.heal()
    two.settle()
    assert two.primary == "B"


def test_what_a_cut_off_primary_takes_is_not_acknowledged_and_is_put_aside(two: Two) -> None:
    two.isolate("A")
    two.wait(lambda: not two.acting)
    assert two.submit("A") == 0
    assert two.wait(lambda: two.acting == ["B"])
    job = two.submit("B")
    two.heal()
    two.settle()
    assert [entry.index for entry in two.boxes["A"].orphans], "its tail was cut off, with a copy"
    assert job in two.boxes["A"].replica.state.jobs
    assert two.boxes["A"].replica.state.encode() == two.boxes["B"].replica.state.encode()


def test_without_its_standby_the_primary_goes_on_after_the_silence_and_a_round_trip(two: Two) -> None:
    two.kill("B")
    cut_s = two.now_s
    two.post("A")
    assert two.wait(lambda: len(two.acknowledged) == 1)
    assert two.now_s - cut_s < SILENCE_S + 2 * TICK_S + 4 * FSYNC_S
    assert two["A"].acceptor.acc.isr == ("A",)


def test_nothing_is_acknowledged_before_the_other_head_or_the_register_says_so(two: Two) -> None:
    """While going on alone is only proposed, what only this head has could still be lost."""
    two.cut("A", "B", *two.voters)
    two.post("A")
    two.run(A_WHILE_S)
    assert two["A"].acceptor.acc.isr == ("A",) and not two["A"].chosen
    assert not two.acknowledged


# ---- coming back


def test_a_head_that_returns_must_answer_for_two_seconds_before_it_is_in_step(two: Two) -> None:
    two.kill("B")
    two.wait(lambda: two["A"].acceptor.acc.isr == ("A",) and two["A"].chosen)
    two.run(1.0)
    two.restart("B")
    back_s = two.now_s
    two.settle()
    assert leading.STEADY_S <= two.now_s - back_s < leading.STEADY_S + 1.0


def test_with_each_relapse_it_must_be_steady_for_twice_as_long(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leading, "RELAPSE_S", 20.0)
    waited = []
    for _ in range(3):
        two.cut("A", "B")
        two.wait(lambda: two["A"].acceptor.acc.isr == ("A",) and two["A"].chosen)
        two.heal()
        healed_s = two.now_s
        two.settle()
        waited.append(two.now_s - healed_s)
    for n, seconds in enumerate(waited):
        assert seconds == pytest.approx(leading.STEADY_S * 2**n, abs=0.6), waited
    two.run(leading.RELAPSE_S + 1)
    two.cut("A", "B")
    two.run(1.0)
    two.heal()
    healed_s = two.now_s
    two.settle()
    assert two.now_s - healed_s < leading.STEADY_S + 1.0, "long ago is forgotten"


def test_under_a_steady_stream_new_entries_wait_a_moment_so_that_the_other_gets_in_step(two: Two) -> None:
    two.kill("B")
    two.wait(lambda: two["A"].acceptor.acc.isr == ("A",) and two["A"].chosen)
    two.restart("B")
    two.stream("A", per_s=500, seconds=3.0)
    assert two.wait(lambda: two["A"].in_step, 2.9), two.story()
    two.run(1.0)
    assert len(two.acknowledged) == 1_500, "none is forgotten"


def test_a_hold_for_the_other_head_ends_even_when_it_never_gets_in_step(two: Two) -> None:
    two.kill("B")
    two.wait(lambda: two["A"].acceptor.acc.isr == ("A",) and two["A"].chosen)
    two.restart("B")
    assert two.wait(lambda: two["A"].holds, 5.0)
    two.cut("A", "B")
    assert two.wait(lambda: not two["A"].holds, 1.0)
    assert two.submit("A")


# ---- who must not


def test_a_stale_head_never_stands(two: Two) -> None:
    two.kill("B")
    job = 0
    two.wait(lambda: two["A"].acceptor.acc.isr == ("A",) and two["A"].chosen)
    job = two.submit("A")
    two.kill("A")
    two.restart("B")
    two.run(20.0)
    assert not two.acting
    assert two["B"].why == "this head isn't in step: it waits for A, which may hold newer jobs"
    two.restart("A")
    assert two.wait(lambda: two.acting == ["A"])
    assert job in two.boxes["A"].replica.state.jobs


def test_after_a_full_power_cut_both_heads_are_needed(two: Two) -> None:
    job = two.submit()
    two.kill("A", "B", *two.voters)
    two.restart("A", *two.voters)
    two.run(20.0)
    assert not two.acting, "the voters are others now, and B may hold newer jobs"
    assert two["A"].why == "neither B nor enough voters answer"
    two.restart("B")
    two.settle()
    assert job in two.boxes[two.primary].replica.state.jobs


def test_after_a_full_power_cut_a_head_that_was_alone_goes_on_at_once(two: Two) -> None:
    two.kill("B")
    two.wait(lambda: two["A"].acceptor.acc.isr == ("A",) and two["A"].chosen)
    two.run(2 * FSYNC_S)  # that is written down, too
    two.kill("A", *two.voters)
    two.restart("A")
    assert two.wait(lambda: two.acting == ["A"], 1.0)


def test_an_election_needs_a_majority_of_living_memories(two: Two) -> None:
    two.kill("A", "n1", "n2")
    two.restart("n1", "n2")
    two.run(20.0)
    assert not two.acting, "n1 and n2 have forgotten: they are other voters"


def test_a_voter_that_reboots_is_replaced_and_then_the_others_may_die(two: Two) -> None:
    two.kill("n1")
    two.restart("n1")
    two.run(ALIVE_S + 2.0)
    assert two["A"].acceptor.acc.voters == (("n1/2", "n2/1", "n3/1"),)
    two.kill("n2", "A")
    assert two.wait(lambda: two.acting == ["B"], A_WHILE_S)


def test_voters_change_only_by_both_sets_and_both_heads(two: Two) -> None:
    two.kill("n1")
    two.cut("A", "B")
    two.restart("n1")
    two.run(ALIVE_S + 2.0)
    assert "n1/1" in two["A"].is_voting, "alone, nothing is changed"
    two.heal()
    two.settle()
    values = [m.cfg.voters for m in of(Accept, two.said) if m.cfg.isr == ("A", "B")]
    old, new = ("n1/1", "n2/1", "n3/1"), ("n1/2", "n2/1", "n3/1")
    steps = [found for n, found in enumerate(values) if n == 0 or values[n - 1] != found]
    assert steps[-3:] == [(old,), (old, new), (new,)]


def test_who_won_says_so_again_until_enough_have_taken_it(two: Two) -> None:
    two.kill("A")
    assert two.wait(lambda: two["B"].role == "won", A_WHILE_S)
    two.cut("B", *two.voters)
    two.run(A_WHILE_S)
    assert two["B"].role == "won" and not two.acting, "all that it said is lost"
    two.heal()
    assert two.wait(lambda: two.acting == ["B"], 1.0)


@pytest.mark.parametrize("role", ["candidate", "won"])
def test_who_promises_a_higher_epoch_while_it_stands_stands_no_more(two: Two, role: str) -> None:
    """Else two heads collect each other's promises, and each goes on alone with them."""
    two.kill("A")
    assert two.wait(lambda: two["B"].role == role and (role == "won" or two["B"]._trying), A_WHILE_S)
    epoch = two["B"].epoch
    two.cut("B", *two.voters)
    two.deliver("A", Prepare("A", epoch + 1))
    two.run(2 * FSYNC_S)
    assert two["B"].role == "idle" and two["B"].acceptor.epoch == epoch + 1
    promises = [message for message in of(Promise, two.said) if message.epoch == epoch + 1]
    assert promises, "and only then it says so"
    two.deliver("A", Promise("A", epoch, None))  # late, for what it stood for
    two.tell("B", "n1", Promise("n1/1", epoch, None))
    two.tell("B", "n2", Promise("n2/1", epoch, None))
    two.run(0.05)
    assert two["B"].role != "won" and not two.acting


def test_the_voters_stay_the_same_when_the_other_head_gets_in_step(two: Two) -> None:
    """A voter tells its highest value only: one of fresh voters would hide one that was chosen by the former."""
    two.kill("B")
    two.wait(lambda: two["A"].acceptor.acc.isr == ("A",) and two["A"].chosen)
    alone = two["A"].acceptor.acc
    two.kill("n1")
    two.restart("n1", "B")
    assert two.wait(lambda: two["A"].in_step, 10.0)
    both = next(m.cfg for m in of(Accept, two.said) if m.cfg.order > alone.order and m.cfg.isr == ("A", "B"))
    assert both.voters == alone.voters and "n1/1" in both.voters[0]


def test_voters_are_spread_over_racks() -> None:
    two = Two(voters=0)
    for at, rack in enumerate("xxxxyz", 1):
        two.new_voter(f"n{at}", rack)
    two.settle()
    racks = sorted(two.voters[name.partition("/")[0]].rack for name in two["A"].is_voting)
    assert racks == ["x", "y", "z"]


def test_ten_workers_give_five_voters() -> None:
    two = Two(voters=10)
    two.settle()
    assert len(two["A"].is_voting) == 5


def test_without_workers_the_primary_holds_the_vote_and_only_it_goes_on() -> None:
    two = Two(voters=0)
    two.settle()
    assert two.wait(lambda: two["A"].acceptor.acc.voters == ((holder("A"),),), 10.0)
    two.kill("B")
    assert two.submit("A"), "the primary goes on"
    two.restart("B")
    two.settle()
    two.kill("A")
    two.run(20.0)
    assert not two.acting, "the standby can't"
    two.restart("A")
    assert two.wait(lambda: two.acting != []), "both together can"


def test_the_held_vote_follows_the_role() -> None:
    two = Two(voters=0)
    two.settle()
    two.run(ALIVE_S + 1.0)
    two.boxes["A"].do(pacts.Wish("switchover"))
    assert two.wait(lambda: two.acting == ["B"])
    assert two.wait(lambda: two["B"].acceptor.acc.voters == ((holder("B"),),), 10.0)
    two.kill("A")
    assert two.submit("B")


# ---- an operator


def test_by_hand_nobody_takes_over_before_an_operator_says_so(two: Two) -> None:
    two.set_pair(takeover="manual")
    two.run(0.5)
    two.kill("A")
    two.run(20.0)
    assert not two.acting
    assert two["B"].why == "take-over is manual: 'beo ha takeover' here"
    assert two.steer("B", "takeover") == ms.Done()
    assert two.wait(lambda: two.acting == ["B"], A_WHILE_S)


def test_by_hand_a_primary_that_was_restarted_goes_on(two: Two) -> None:
    two.set_pair(takeover="manual")
    two.run(0.5)
    two.kill("A")
    two.restart("A")
    assert two.wait(lambda: two.acting == ["A"], A_WHILE_S)


def test_a_wish_to_take_over_is_forgotten_when_it_can_not_be_had(two: Two) -> None:
    two.set_pair(takeover="manual")
    two.run(0.5)
    answer = two.steer("B", "takeover")
    assert isinstance(answer, ms.Failed) and "switchover" in answer.error["cure"], "A is well"
    two.run(60.0)
    two.kill("A")
    two.run(20.0)
    assert not two.acting, "what was wished a minute ago is no wish any more"


def test_frozen_nobody_takes_over(two: Two) -> None:
    assert two.steer("A", "freeze") == ms.Done()
    two.run(0.5)
    two.kill("A")
    two.run(20.0)
    assert not two.acting
    two.restart("A")
    assert two.wait(lambda: two.acting == ["A"])
    assert two.steer("A", "thaw") == ms.Done()
    two.settle()
    two.kill("A")
    assert two.wait(lambda: two.acting == ["B"], A_WHILE_S)


def test_a_switchover_waits_for_no_lease_and_loses_nothing(two: Two) -> None:
    two.stream("A", per_s=200, seconds=1.0)
    two.run(0.5)
    asked_s = two.now_s
    assert two.steer("A", "switchover") == ms.Done()
    assert two.wait(lambda: two.acting == ["B"], A_WHILE_S), two.story()
    assert two.now_s - asked_s < LEASE_S / 2
    two.settle()
    assert two.primary == "B"


def test_a_hand_over_that_is_lost_costs_no_more_than_a_lease(two: Two) -> None:
    two.delay = lambda sender, message: 1e9 if isinstance(message, HandOver) else 0.001
    assert two.steer("A", "switchover") == ms.Done()
    assert two.wait(lambda: not two.acting)
    assert two.wait(lambda: two.acting != [], 2 * LEASE_S + 1.0)
    two.settle()


def test_a_hand_over_that_comes_late_changes_nothing(two: Two) -> None:
    two.steer("A", "switchover")
    assert two.wait(lambda: two.acting == ["B"])
    old = of(HandOver, two.said)[-1]
    two.settle()
    two.steer("B", "switchover")
    assert two.wait(lambda: two.acting == ["A"])
    two.settle()
    two.deliver("A", old)
    two.run(A_WHILE_S)
    assert two.acting == ["A"]


def test_a_hand_over_to_a_head_that_was_emptied_does_no_harm(two: Two) -> None:
    two.kill("B")
    two.boxes["B"].wipe()
    two.restart("B")
    assert two.wait(lambda: two["B"].log.last == two["A"].log.last, 10.0) and two["B"].acceptor.acc is None
    two.deliver("A", HandOver("A", two["A"].epoch, two["A"].log.last))
    assert two["B"].role == "idle"
    two.settle()
    assert two.primary == "A"


def test_a_switchover_is_refused_where_the_other_is_not_in_step(two: Two) -> None:
    two.kill("B")
    two.run(1.0)
    answer = two.steer("A", "switchover")
    assert isinstance(answer, ms.Failed) and "isn't in step" in answer.error["what"]
    assert isinstance(two.steer("A", "nonsense"), ms.Failed)


def test_a_switchover_that_does_not_come_to_be_is_given_up_and_work_goes_on(two: Two) -> None:
    """Even when meanwhile another value of the register is pending, which the other head never takes."""
    two.delay = lambda sender, message: 1e9 if isinstance(message, Accept) else 0.001
    two.boxes["A"].output_lag = 1
    two.kill("n1")
    two.restart("n1")
    assert two.wait(lambda: not two["A"].chosen, ALIVE_S + 2.0), "the voters' change is pending"
    two["A"]._leave_s = two.now_s
    assert two["A"].holds
    assert two.wait(lambda: not two["A"].holds, 2 * leading.LEAVE_S)
    assert two.submit("A")


def test_the_first_head_gets_its_role_back_where_that_is_wished(two: Two) -> None:
    two.set_pair(failback=True)
    two.kill("A")
    assert two.wait(lambda: two.acting == ["B"])
    two.restart("A")
    assert two.wait(lambda: two.acting == ["A"], 20.0)
    took = [at for at, name in two.when("primary")][-1] - [at for at, name in two.when("idle")][-1]
    assert took < LEASE_S / 2, "a planned hand-over"


def test_a_forced_head_begins_a_generation_and_the_other_is_foreign_until_it_is_wiped(two: Two) -> None:
    two.kill("A", *two.voters)
    two.run(2.0)
    assert not two.acting
    assert two.steer("B", "force") == ms.Done()
    assert two.wait(lambda: two.acting == ["B"], 1.0)
    assert votes.generation(two["B"].epoch) == 1
    assert votes.epoch_text(two["B"].epoch) == "1:2"
    job = two.submit("B")
    two.restart("A")
    two.run(5.0)
    assert two["A"].foreign and two.acting == ["B"]
    assert "beo ha rejoin --wipe" in two["A"].why
    two.boxes["A"].wipe()
    two.restart("A")
    two.settle()
    assert job in two.boxes["A"].replica.state.jobs


def test_a_head_that_was_forced_away_learns_it_from_the_voters_too() -> None:
    """It hears only them, and they have promised an epoch of a generation that it knows nothing of."""
    two = Two()
    two.settle()
    two.kill("A")
    two.isolate("A")
    voter = two.voters["n1"]
    forced = (1 << votes.GENERATION_SHIFT) + 2
    voter.acceptor.lease(votes.Lease("B", forced, 0.0, 0.1), two.now_s)
    two.restart("A")
    two.kill("B")
    two.heal()
    two.run(5.0)
    assert two["A"].foreign and not two.acting, two.story()


def test_a_head_without_any_journal_is_not_forced(two: Two) -> None:
    two.boxes["B"].wipe()
    two.restart("B")
    two.kill("A")
    with pytest.raises(Conflict, match="nothing of the cluster"):
        two.boxes["B"].do(pacts.Wish("force"))


def test_a_head_is_not_forced_while_the_other_one_is_heard(two: Two) -> None:
    answer = two.steer("B", "force")
    assert isinstance(answer, ms.Failed) and "acts" in answer.error["what"]
    two.run(1.0)
    assert two.acting == ["A"]
    assert two["B"].acceptor.epoch == two["A"].epoch


# ---- the journal


def test_a_committed_entry_is_never_cut(two: Two) -> None:
    """Whoever says otherwise is stopped: the two journals need a person."""
    two.submit()
    two.run(0.2)
    log = two["B"].log
    at = two["B"].commit
    previous = log.position(at - 1)
    other = Append("A", two["A"].epoch, two.now_s, LEASE_S, previous, ((two["A"].epoch, b"other"),), at, at)
    with pytest.raises(Internal, match="was committed"):
        two.deliver("A", other)


def test_a_standby_far_behind_gets_a_snapshot_first(two: Two) -> None:
    two.kill("B")
    two.run(1.0)
    two.submit("A", 300)
    two.boxes["A"].compact()
    two.submit("A", 5)
    two.boxes["B"].wipe()
    two.restart("B")
    two.settle()
    assert of(Part, two.said)
    assert two.boxes["B"].replica.state.encode() == two.boxes["A"].replica.state.encode()
    two.kill("A")
    assert two.wait(lambda: two.acting == ["B"], A_WHILE_S)


def test_a_late_piece_of_an_old_snapshot_takes_nothing_back(two: Two) -> None:
    two.kill("B")
    two.run(1.0)
    two.submit("A", 100)
    two.boxes["A"].compact()
    two.boxes["B"].wipe()
    two.restart("B")
    two.settle()
    job = two.submit("A", 10)
    for part in of(Part, two.said):
        two.deliver("A", part)
    two.kill("A")
    assert two.wait(lambda: two.acting == ["B"], A_WHILE_S)
    assert job in two.boxes["B"].replica.state.jobs


def test_an_old_refusal_of_a_position_costs_only_a_round_trip(two: Two) -> None:
    two.kill("B")
    two.run(1.0)
    two.submit("A", 50)
    two.boxes["B"].wipe()
    two.restart("B")
    two.settle()
    old = [message for message in of(Appended, two.said) if not message.ok and message.hint == 0][-1]
    two.submit("A", 10)
    two.boxes["A"].compact()
    two.deliver("B", old)
    two.run(0.5)
    assert two["A"].in_step and two["A"].sender.whole
    job = two.submit()
    two.kill("A")
    assert two.wait(lambda: two.acting == ["B"], A_WHILE_S)
    assert job in two.boxes["B"].replica.state.jobs


def test_an_answer_of_an_earlier_life_does_not_bring_a_wiped_head_in_step(two: Two) -> None:
    """It says that everything is there: it was, before the disk was emptied."""
    two.submit("A", 20)
    two.run(0.2)
    old = [message for message in of(Appended, two.said) if message.ok][-1]
    two.kill("B")
    two.run(1.0)
    two.boxes["B"].wipe()
    two.restart("B")
    two.delay = lambda sender, message: 1e9 if isinstance(message, Append) and message.entries else 0.001
    for _ in range(100):
        two.run(0.05)
        two.deliver("B", old)
    assert not two["A"].in_step
    assert two["B"].acceptor.acc is None


def test_a_head_that_was_wiped_and_is_back_within_the_silence_is_out_of_step_until_it_can_take_over(two: Two) -> None:
    """Nobody has missed it, so that it counted as in step, but it knew nothing of the register and never stood."""
    job = two.submit("A")
    two.kill("B")
    two.boxes["B"].wipe()
    two.restart("B")
    assert two.wait(lambda: not two["A"].in_step, LEASE_S)
    two.settle()
    two.kill("A")
    assert two.wait(lambda: two.acting == ["B"], A_WHILE_S)
    assert job in two.boxes["B"].replica.state.jobs


def test_a_head_that_knows_nothing_has_no_vote(two: Two) -> None:
    """A disk was emptied that had promised: it must not promise again, as if it had not."""
    two.kill("A")
    assert two.wait(lambda: two.acting == ["B"], A_WHILE_S)
    two.submit("B")
    two.kill("B", *two.voters)
    two.boxes["B"].wipe()
    two.restart("A", "B")
    two.run(20.0)
    assert not two.acting, "B may have held newer jobs; only an operator knows that they are gone"


def test_two_heads_whose_snapshots_differ_say_so(two: Two) -> None:
    log = two["B"].log
    cut = log.last
    log.install(cut)
    other = Position(cut.idx, cut.epoch, b"other")
    with pytest.raises(Internal, match="rejoin --wipe"):
        two.deliver("A", Append("A", two["A"].epoch, 0.0, LEASE_S, other, (), cut.idx, cut.idx))


def test_a_digest_that_differs_stops_the_standby(two: Two) -> None:
    two.boxes["B"].replica.state.digests[3] = b"mine"
    append = of(Append, two.said)[-1]
    with pytest.raises(Internal, match="is not the primary's"):
        two.deliver("A", msgspec.structs.replace(append, digest=(3, b"theirs")))


def test_a_tail_that_will_be_cut_is_not_compared(two: Two) -> None:
    """A primary that was cut off has written on; the digest of that is of a state that nobody shares."""
    two.isolate("A")
    two.wait(lambda: two.acting == ["B"])
    two.post("A")
    two.run(0.1)
    tail = two["A"].log.last.idx
    two.kill("A")
    two.restart("A")
    two.boxes["A"].replica.state.digests[tail] = b"of the tail"
    two.submit("B", 10)
    two.boxes["B"].replica.state.digests[tail] = b"of the journal"
    two.heal()
    two.settle()
    assert two.boxes["A"].replica.state.encode() == two.boxes["B"].replica.state.encode()


# ---- the levels


def test_at_level_b_a_restarted_standby_is_out_of_step_until_it_has_everything(two: Two) -> None:
    two.set_pair(level="B")
    assert two.wait(lambda: two["A"].in_step and "B" not in two["A"].acceptor.acc.isr)
    before = two["A"].acceptor.acc.isr[1]
    two.cut("A", "B")
    two.kill("B")
    two.restart("B")
    two.kill("A")
    two.run(20.0)
    assert not two.acting, "what it had received and not written is gone"
    two.heal()
    two.restart("A")
    two.settle()
    two.run(0.5)
    assert two.primary == "A"
    assert two["A"].acceptor.acc.isr[1] not in (before, "B")


def test_at_level_b_what_is_received_is_acknowledged_before_it_is_durable(two: Two) -> None:
    two.set_pair(level="B")
    two.wait(lambda: "B" not in two["A"].acceptor.acc.isr and two["A"].in_step)
    two.run(0.2)
    two.boxes["B"].hangs = True
    asked_s = two.now_s
    assert two.submit("A")
    assert two.now_s - asked_s < SILENCE_S


def test_at_level_b_answers_of_an_earlier_life_bring_nobody_in_step(two: Two) -> None:
    two.set_pair(level="B")
    two.wait(lambda: "B" not in two["A"].acceptor.acc.isr and two["A"].in_step)
    two.boxes["B"].hangs = True
    job = two.submit("A", 20)
    old = [message for message in of(Appended, two.said) if message.ok][-1]
    two.delay = lambda sender, message: 1e9 if isinstance(message, Append) and message.entries else 0.001
    two.kill("B")
    two.restart("B")
    for _ in range(10):
        two.run(0.02)
        two.deliver("B", old)
    mine = two["B"]._members[1]
    assert mine not in two["A"].acceptor.acc.isr or not two["A"].chosen
    two.kill("A")
    two.run(A_WHILE_S)
    assert not two.acting, f"B lacks job {job}"


def test_back_at_level_c_nothing_is_acknowledged_that_the_standby_only_has_received(two: Two) -> None:
    two.set_pair(level="B")
    two.wait(lambda: "B" not in two["A"].acceptor.acc.isr and two["A"].in_step)
    two.run(0.2)
    two.boxes["B"].hangs = True
    before = len(two.acknowledged)
    two.boxes["A"].do(acts.Asked(b"cli", 900, "root", ms.SetPair(level="C"), None))
    two.post("A")
    two.run(SILENCE_S / 2)
    assert len(two.acknowledged) == before
    two.boxes["B"].hangs = False
    two.settle()
    assert two["A"].acceptor.acc.isr == ("A", "B")
    assert len(two.acknowledged) == before + 1


def test_the_level_changes_while_the_other_head_is_away(two: Two) -> None:
    two.kill("B")
    two.run(1.0)
    two.set_pair(level="B")
    two.restart("B")
    two.settle()
    two.run(0.5)
    assert two["A"].in_step and two["A"].acceptor.acc.isr[1].startswith("B/")
    two.kill("B")
    two.run(1.0)
    two.set_pair(level="C")
    two.restart("B")
    two.settle()
    two.run(0.5)
    assert two["A"].acceptor.acc.isr == ("A", "B")


def test_the_level_changes_under_a_steady_stream(two: Two) -> None:
    two.stream("A", per_s=900, seconds=2.5)
    two.run(0.5)
    for level in "BCBC":
        two.boxes["A"].do(acts.Asked(b"cli", 900, "root", ms.SetPair(level=level), None))
        two.run(0.5)
        assert two["A"].in_step
        assert ("B" in two["A"].acceptor.acc.isr) == (level == "C")


def test_at_level_a_the_primary_alone_is_enough(two: Two) -> None:
    two.set_pair(level="A")
    two.boxes["B"].hangs = True
    asked_s = two.now_s
    assert two.submit("A")
    assert two.now_s - asked_s < SILENCE_S


def test_at_level_a_nobody_takes_over_by_itself_who_lacks_too_much(two: Two) -> None:
    two.set_pair(level="A")
    two.run(0.3)
    two.delay = lambda sender, message: 1e9 if isinstance(message, Append) and message.entries else 0.001
    for _ in range(pair.ASYNC_LAG + 10):
        two.post("A")
    two.run(0.2)
    two.kill("A")
    two.acknowledged.clear()  # that's what the level means
    two.run(20.0)
    assert not two.acting
    assert "entries were missing" in two["B"].why and "beo ha takeover" in two["B"].why
    two.steer("B", "takeover")
    assert two.wait(lambda: two.acting == ["B"], A_WHILE_S)


def test_a_standby_whose_files_are_not_whole_takes_over_only_when_an_operator_says_so(two: Two) -> None:
    """Its process may know that only after both were in step: a disk was damaged, say."""
    two.boxes["B"].lacks = 3
    two.run(0.3)
    two.kill("A")
    two.run(10.0)
    assert not two.acting
    assert "files are not whole here" in two["B"].why and "beo ha takeover" in two["B"].why
    two.steer("B", "takeover")
    assert two.wait(lambda: two.acting == ["B"], A_WHILE_S)


def test_who_acted_last_acts_again_though_its_files_are_not_whole(two: Two) -> None:
    """Nobody has more of them that is not asked by it."""
    two.kill("A", "B")
    two.boxes["A"].lacks = 3
    two.restart("A")
    assert two.wait(lambda: two.acting == ["A"], A_WHILE_S)


def test_at_level_a_a_lost_tail_is_put_aside_and_nothing_counts_as_committed_that_is_gone(two: Two) -> None:
    two.set_pair(level="A")
    two.run(0.3)
    two.delay = lambda sender, message: 1e9 if isinstance(message, Append) and message.entries else 0.001
    assert two.submit("A", 10)
    two.run(0.1)
    two.isolate("A")
    two.acknowledged.clear()
    assert two.wait(lambda: two.acting == ["B"], A_WHILE_S)
    two.delay = lambda sender, message: 0.001
    two.heal()
    two.settle()
    assert len(two.boxes["A"].orphans) >= 10
    assert two["A"].commit <= two["A"].log.last.idx
    two.kill("B")
    assert two.wait(lambda: two.acting == ["A"], A_WHILE_S)
    two.boxes["A"].hangs = True
    assert two.submit("A") == 0, "not durable here: not acknowledged"


# ---- clocks and disks


def test_a_shorter_lease_counts_from_the_first_that_was_asked_for(two: Two) -> None:
    two.set_pair(lease_s=8.0)
    two.run(1.0)
    two.set_pair(lease_s=0.6)
    two.run(TICK_S)
    two.isolate("A")
    assert two.wait(lambda: two.acting == ["B"], 20.0)
    two.run(10.0)  # that both never act at once is looked at all the time


def test_a_longer_lease_is_not_counted_for_one_that_was_asked_for_before(two: Two) -> None:
    asked_s = two.now_s
    for lease_s in (5.0, 5.5):
        two.set_pair(lease_s=lease_s)
        two.run(2 * TICK_S)
    epoch = two["A"].epoch
    two.cut("A", "B", *two.voters)
    two["A"]._grants.clear()
    for voter in two.voters.values():  # what they answered then comes now
        two.tell("A", voter.node, votes.Granted(voter.name, epoch, asked_s))
    assert two["A"].acts_until_s <= asked_s + LEASE_S


def test_a_primary_whose_disk_hangs_gives_up(two: Two) -> None:
    two.boxes["A"].hangs = True
    two.post("A")
    assert two.wait(lambda: two.acting == ["B"], 4 * LEASE_S + A_WHILE_S), two.story()
    assert ("A" in [name for _, name in two.when("idle")]) and two["A"].role != "primary"
    two.boxes["A"].hangs = False
    two.settle()
    assert two.primary == "B"


def test_under_load_some_entry_is_always_on_its_way_to_the_disk_and_the_disk_does_not_hang(two: Two) -> None:
    two.stream("A", per_s=900, seconds=4 * LEASE_S)
    two.run(4 * LEASE_S)
    assert two.acting == ["A"] and len(two.when("primary")) == 1


def test_a_standby_that_takes_nothing_counts_as_silent_however_well_it_answers(two: Two) -> None:
    two.boxes["B"].hangs = True
    two.post("A")
    assert two.wait(lambda: len(two.acknowledged) == 1, leading.STUCK_S + 4 * TICK_S)
    assert two["A"].acceptor.acc.isr == ("A",)


def test_a_voter_is_not_missed_right_after_a_start(two: Two) -> None:
    """A head that has just begun has heard nobody yet: that is no reason to change who votes."""
    two.kill("A", "B")
    for node in two.voters:
        two.cut(node, "A", "B", back=False)
    two.after(2.0, two.heal)
    two.said.clear()
    two.restart("A", "B")
    two.settle()
    two.run(5.0)
    sets = {m.cfg.voters for m in of(Accept, two.said)}
    assert all(holder("A") not in group for groups in sets for group in groups)
    assert all(len(groups) == 1 for groups in sets), sets


# ---- words that don't count


def test_a_voter_that_nobody_asked_does_not_count(two: Two) -> None:
    two.kill("A", "n1", "n2", "n3")
    two.run(2.0)
    pair_ = two["B"]
    for at in range(4, 9):
        for pre in (True, False):
            two.boxes["B"].do(pacts.FromVoter(Promise(f"n{at}/1", pair_.epoch, None, pre)))
    two.run(1.0)
    assert not two.acting


def test_who_speaks_for_a_voter_must_hold_its_key(two: Two) -> None:
    two.kill("A", "n1", "n2", "n3")
    two.run(2.0)
    assert two["B"].role == "candidate"
    for node in ("n1", "n2", "n3"):
        for key in ("ann", "root", "nobody"):
            two.tell("B", node, Promise(f"{node}/1", two["B"].epoch, None, True), key)
    assert not two["B"]._trying
    two.tell("B", "n1", Promise("n1/1", two["B"].epoch, None, True))
    two.tell("B", "n2", Promise("n2/1", two["B"].epoch, None, True))
    assert two["B"]._trying


@pytest.mark.parametrize(
    ("voter", "node", "key"),
    [
        ("n9", "n9", "worker"),  # no nonce
        ("n9/1", "n8", "worker"),  # another node's
        ("n9/1", "n9", "ann"),
        ("n9/1", "n9", "root"),
        ("n9/1", "n9", "nobody"),
        ("witness:w/1", "", "worker"),
        ("holder/1", "holder", "worker"),
    ],
)
def test_a_voter_of_another_name_is_not_known(two: Two, voter: str, node: str, key: str) -> None:
    two.tell("A", node or "n9", Present(voter, node), key)
    assert voter not in two["A"].present


def test_a_rebooted_voter_takes_the_place_of_its_former_self(two: Two) -> None:
    for life in range(2, 50):
        two.tell("A", "n1", Present(f"n1/{life}", "n1"))
    two.run(60.0)
    assert sum(name.startswith("n1/") for name in two["A"].present) < 5, "what is gone for long is forgotten"


def test_a_word_of_an_older_epoch_changes_nothing(two: Two) -> None:
    said = list(two.said)
    two.kill("A")
    two.wait(lambda: two.acting == ["B"])
    two.restart("A")
    two.settle()
    before = two["A"].acceptor.durable, two["B"].acceptor.durable
    for sender, message in said:
        two.deliver(sender, message)
    two.run(1.0)
    assert (two["A"].acceptor.durable, two["B"].acceptor.durable) == before
    assert two.acting == ["B"]


def test_every_word_may_come_twice_and_late(two: Two) -> None:
    late = Two(seed=3)
    late.delay = lambda sender, message: late.random.choice((0.001, 0.002, 0.05))

    def again() -> None:
        sender, message = late.random.choice(late.said[-200:])
        late.deliver(sender, message)
        late.after(0.005, again)

    late.after(0.5, again)
    late.settle()
    late.stream("A", per_s=100, seconds=8.0)
    late.run(2.0)
    late.kill("A")
    late.run(3.0)
    late.restart("A")
    late.run(6.0)
    late.settle()
    late.run(1.0)
    assert late.boxes["A"].replica.state.encode() == late.boxes["B"].replica.state.encode()


# ---- clients


def test_a_standby_names_the_primary(two: Two) -> None:
    assert two.ask("B", ms.Info()) == [ms.Elsewhere("A:1", two["A"].epoch)]
    two.kill("A")
    two.run(0.2)
    assert two.ask("B", ms.Info()) == [ms.Elsewhere("A:1", two["A"].epoch)]
    assert two.wait(lambda: two.acting == ["B"])
    assert isinstance(two.ask("B", ms.Info())[0], ms.InfoIs)


def test_what_is_held_is_answered_when_the_role_is_lost(two: Two) -> None:
    two["A"]._leave_s = two.now_s
    two.boxes["A"].output_lag = 1
    two.boxes["A"].do(acts.Asked(b"cli", 77, "ann", ms.Info()))
    two.boxes["A"].do(acts.Knocked(5, acts.Knock(1000, 1000, (), "key"), ACCOUNT))
    assert not two.answers and not two.greeted
    two.boxes["A"].do(pacts.FromVoter(votes.Refuse("n1/1", two["A"].epoch, two["A"].epoch + 1)))
    assert two["A"].role == "idle"
    assert [type(message) for _, message in two.answers] == [ms.Elsewhere]
    assert [(greet.visitor, greet.error and greet.error["kind"]) for greet in two.greeted] == [(5, "NoHead")]


def test_only_an_admin_steers_and_nobody_else_may(two: Two) -> None:
    for key in ("ann", "worker", "nobody"):
        for word in ("switchover", "takeover", "force", "freeze"):
            answer = two.ask("A", ms.Steer(word), key)[-1]
            assert isinstance(answer, ms.Failed), (key, word)
    assert two.acting == ["A"]


def test_what_the_pair_says_of_itself(two: Two) -> None:
    view = two.ask("A", ms.AskPair(), "root")[-1]
    assert (view.name, view.role, view.in_step, view.primary) == ("A", "primary", True, "A")
    assert [voter.voter for voter in view.voters if voter.votes] == ["n1/1", "n2/1", "n3/1"]
    other = two.ask("B", ms.AskPair(), "root")[-1]
    assert (other.role, other.primary, other.commit) == ("standby", "A", view.commit)

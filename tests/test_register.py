"""The register's acceptor and its quorums: what is promised is kept, what is taken is never taken back."""

import pytest
from hypothesis import settings, strategies
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from beo.ha.register import RHO, Acceptor, carried, is_majority
from beo.votes import Accept, Accepted, Cfg, Granted, Lease, Prepare, Promise, Refuse

SOLO_A = Cfg(1, 1, ("A",), (("v1", "v2", "v3"),))
SOLO_B = Cfg(2, 2, ("B",), (("v1", "v2", "v3"),))


def test_a_promise_shows_what_was_taken_and_shuts_out_lower_epochs() -> None:
    acceptor = Acceptor("v1")
    assert acceptor.prepare(Prepare("A", 1), 0.0) == Promise("v1", 1, None)
    assert acceptor.accept(Accept("A", SOLO_A)) == Accepted("v1", 1, 1)
    assert acceptor.prepare(Prepare("B", 2), 0.0) == Promise("v1", 2, SOLO_A)
    assert acceptor.accept(Accept("A", SOLO_A)) == Refuse("v1", 1, 2)
    assert acceptor.prepare(Prepare("A", 1), 0.0) == Refuse("v1", 1, 2)
    assert acceptor.lease(Lease("A", 1, 0.0, 1.0), 0.0) == Refuse("v1", 1, 2)
    assert acceptor.durable == (2, SOLO_A)


def test_a_promise_repeated_says_the_same() -> None:
    acceptor = Acceptor("v1")
    assert acceptor.prepare(Prepare("A", 3), 0.0) == acceptor.prepare(Prepare("A", 3), 1.0) == Promise("v1", 3, None)


def test_a_pre_vote_promises_nothing() -> None:
    acceptor = Acceptor("v1", 2, SOLO_B)
    assert acceptor.prepare(Prepare("A", 3, pre=True), 0.0) == Promise("v1", 3, SOLO_B, pre=True)
    assert acceptor.durable == (2, SOLO_B)
    assert acceptor.prepare(Prepare("A", 2, pre=True), 0.0) == Refuse("v1", 2, 2)


def test_an_older_value_of_the_same_epoch_is_not_confirmed() -> None:
    acceptor = Acceptor("v1")
    newer = Cfg(1, 2, ("A", "B"))
    assert acceptor.accept(Accept("A", newer)) == Accepted("v1", 1, 2)
    assert acceptor.accept(Accept("A", SOLO_A)) == Refuse("v1", 1, 1)
    assert acceptor.acc == newer


def test_while_a_lease_runs_no_other_head_is_promised_anything() -> None:
    acceptor = Acceptor("v1")
    assert acceptor.lease(Lease("A", 1, 7.0, 1.0), 0.0) == Granted("v1", 1, 7.0)
    assert acceptor.prepare(Prepare("B", 2), 1.0 + RHO - 1e-9) == Refuse("v1", 2, 1, lease=True)
    assert acceptor.prepare(Prepare("B", 2, pre=True), 1.0) == Refuse("v1", 2, 1, lease=True)
    assert acceptor.durable == (1, None)
    assert isinstance(acceptor.prepare(Prepare("A", 3), 0.5), Promise), "its holder may be promised more"
    assert acceptor.prepare(Prepare("B", 4), 1.0 + RHO) == Promise("v1", 4, None)


def test_a_lease_that_was_given_is_not_shortened_by_a_later_one() -> None:
    """Its holder may count on the longer one, whose answer it has."""
    acceptor = Acceptor("v1")
    acceptor.lease(Lease("A", 1, 0.0, 10.0), 0.0)
    acceptor.lease(Lease("A", 1, 1.0, 0.6), 1.0)
    assert acceptor.prepare(Prepare("B", 2), 9.0) == Refuse("v1", 2, 1, lease=True)


def test_a_lease_given_back_blocks_nobody() -> None:
    acceptor = Acceptor("v1")
    acceptor.lease(Lease("A", 1, 0.0, 1.0), 0.0)
    acceptor.release()
    assert acceptor.prepare(Prepare("B", 2), 0.1) == Promise("v1", 2, None)


def test_one_that_has_forgotten_its_leases_promises_nobody_until_they_have_run_out() -> None:
    acceptor = Acceptor("witness:w/1", 1, SOLO_A)
    acceptor.hold("?", 1.0)
    assert isinstance(acceptor.prepare(Prepare("A", 3), 0.9), Refuse)
    assert isinstance(acceptor.prepare(Prepare("B", 4), 0.9), Refuse)
    assert acceptor.accept(Accept("A", Cfg(1, 2, ("A",)))) == Accepted("witness:w/1", 1, 2), "who acts goes on"
    assert isinstance(acceptor.prepare(Prepare("B", 4), 1.0), Promise)


@pytest.mark.parametrize(
    ("of", "these", "enough"),
    [
        ("abc", "ab", True),
        ("abc", "a", False),
        ("abc", "axyz", False),
        ("abcd", "ab", False),
        ("abcd", "abc", True),
        ("a", "a", True),
        ("", "abc", False),
        ("", "", False),
    ],
)
def test_a_majority_is_more_than_half_of_the_set(of: str, these: str, enough: bool) -> None:
    assert is_majority(of, these) is enough


def test_every_set_must_agree_and_no_set_agrees_to_nothing() -> None:
    assert carried(("abc", "cde"), "abde")
    assert not carried(("abc", "def"), "abcd"), "a majority of both together is none of each"
    assert not carried(("abc", ""), "abc")
    assert not carried((), "abc")


CFGS = strategies.builds(
    lambda head, count, n, isr: Cfg(2 * count + (head == "A"), n, isr or (head,)),
    strategies.sampled_from("AB"),
    strategies.integers(1, 4),
    strategies.integers(1, 4),
    strategies.sampled_from([(), ("A", "B")]),
)


class AcceptorMachine(RuleBasedStateMachine):
    """An acceptor asked anything in any order, against what it has said before."""

    def __init__(self) -> None:
        super().__init__()
        self.acceptor = Acceptor("v")
        self.now_s = 0.0
        self.promised = 0  # the highest epoch that anybody was told
        self.taken: Cfg | None = None  # the highest value that anybody was told
        self.values: dict[tuple[int, int], Cfg] = {}  # a proposer gives a number once
        self.until_s = {"A": 0.0, "B": 0.0}

    @rule(seconds=strategies.floats(0.0, 2.0))
    def wait(self, seconds: float) -> None:
        """Time passes."""
        self.now_s += seconds

    @rule(head=strategies.sampled_from("AB"), count=strategies.integers(1, 3), pre=strategies.booleans())
    def prepare(self, head: str, count: int, pre: bool) -> None:
        """A head asks for a promise."""
        epoch = 2 * count + (head == "A")
        before = self.acceptor.durable
        answer = self.acceptor.prepare(Prepare(head, epoch, pre), self.now_s)
        if isinstance(answer, Promise):
            assert epoch >= self.promised, "more was promised before"
            assert answer.acc == self.taken, "what was taken is told"
            assert self.now_s >= self.until_s["B" if head == "A" else "A"], "the other's lease runs"
            if not pre:
                self.promised = epoch
        if pre or isinstance(answer, Refuse):
            assert self.acceptor.durable == before

    @rule(cfg=CFGS)
    def accept(self, cfg: Cfg) -> None:
        """A head asks to take a value."""
        cfg = self.values.setdefault(cfg.order, cfg)
        answer = self.acceptor.accept(Accept("A" if cfg.epoch % 2 else "B", cfg))
        if isinstance(answer, Accepted):
            assert cfg.epoch >= self.promised
            assert self.taken is None or cfg.order >= self.taken.order
            assert self.acceptor.acc == cfg
            self.promised, self.taken = cfg.epoch, cfg
        else:
            assert self.acceptor.acc == self.taken, "what isn't confirmed is not taken"
            self.promised = self.acceptor.epoch

    @rule(head=strategies.sampled_from("AB"), count=strategies.integers(1, 3), lease_s=strategies.floats(0.1, 3.0))
    def lease(self, head: str, count: int, lease_s: float) -> None:
        """Who acts asks for a lease."""
        epoch = 2 * count + (head == "A")
        answer = self.acceptor.lease(Lease(head, epoch, 0.0, lease_s), self.now_s)
        if isinstance(answer, Granted):
            assert epoch >= self.promised
            if epoch > self.promised:
                self.until_s = dict.fromkeys("AB", 0.0)  # others have chosen this head: no majority is the old one's
            self.promised = epoch
            self.until_s[head] = max(self.until_s[head], self.now_s + lease_s)

    @rule()
    def restart(self) -> None:
        """A durable one comes back with what it had kept; its leases have run out meanwhile."""
        self.acceptor = Acceptor("v", *self.acceptor.durable)
        self.now_s = max(self.now_s, *self.until_s.values())

    @invariant()
    def keeps(self) -> None:
        """What anybody was told is what it would keep."""
        assert self.acceptor.durable == (self.promised, self.taken)


AcceptorMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=20, deadline=None)
TestAcceptor = AcceptorMachine.TestCase

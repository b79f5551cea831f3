"""The errors: what they say, what they exit with, and that they survive a journey."""

import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import beo
from beo import errors
from beo.errors import BeoError, Conflict, DamagedJournal, Internal, NoHead, NotFound, Refused, TimedOut, UsageError

KINDS = [BeoError, UsageError, NotFound, NoHead, TimedOut, Refused, Conflict, DamagedJournal, Internal]
ROOT = Path(__file__).resolve().parent.parent


def test_an_error_says_what_why_and_the_cure() -> None:
    error = NoHead("no head answers at head:7420", "tried for 2 s", "start one with 'beo up', or set BEO_HEADS")
    assert str(error) == "no head answers at head:7420 (tried for 2 s): start one with 'beo up', or set BEO_HEADS"
    assert str(BeoError("the disk is full")) == "the disk is full"
    assert str(BeoError("the disk is full", cure="make room")) == "the disk is full: make room"
    assert str(BeoError("the disk is full", "0 B left")) == "the disk is full (0 B left)"


@pytest.mark.parametrize(
    ("kind", "code"),
    [(UsageError, 2), (NotFound, 2), (NoHead, 69), (Internal, 70), (Conflict, 75), (Refused, 77), (TimedOut, 124)],
)
def test_each_kind_has_its_exit_code(kind: type[BeoError], code: int) -> None:
    assert kind("x").exit_code == code


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_arrives_as_the_class_that_was_sent(kind: type[BeoError]) -> None:
    sent = kind("job 7 runs already", "since noon", "wait for it with 'beo wait 7'")
    arrived = errors.from_dict(sent.to_dict())
    assert type(arrived) is kind
    assert (arrived.what, arrived.why, arrived.cure) == (sent.what, sent.why, sent.cure)
    assert str(pickle.loads(pickle.dumps(sent))) == str(sent)


def test_every_class_of_error_can_travel() -> None:
    here = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, BeoError)]
    assert {type(errors.from_dict(kind("x").to_dict())) for kind in here} == set(here)


@given(st.dictionaries(st.sampled_from(["kind", "what", "why", "cure", "?"]), st.none() | st.text() | st.integers()))
def test_whatever_arrives_becomes_some_error(parts: dict[str, object]) -> None:
    assert isinstance(errors.from_dict(parts), BeoError)


def test_a_part_that_would_flood_the_terminal_is_cut() -> None:
    assert len(str(BeoError("x" * 10**6, "y" * 10**6, "z" * 10**6))) < 3 * errors.PART_LIMIT_CHARS + 10


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    assert str(NotFound.among("node", "nod01", ["node01", "head"])) == "no node 'nod01': did you mean node01?"
    assert str(NotFound.among("node", "zz", ["node01"], cure="see 'beo nodes'")) == "no node 'zz': see 'beo nodes'"
    assert len(errors.nearest("node5", [f"node{n}" for n in range(100)])) == errors.NEAREST_LIMIT


def test_importing_beo_loads_nothing_else() -> None:
    program = "import sys; before = set(sys.modules); import beo; print(*sorted(set(sys.modules) - before))"
    loaded = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert loaded.stdout.split() == ["beo"]


def test_a_public_name_is_loaded_when_it_is_used() -> None:
    assert beo.BeoError is BeoError
    assert "submit" in dir(beo)
    with pytest.raises(AttributeError, match="no attribute 'sumbit'"):
        _ = beo.sumbit

"""Node sets: folding and expanding are each other's way back, and the algebra is that of sets."""

import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beo.errors import UsageError
from beo.nodeset import EXPANSION_LIMIT, difference, expand, fold, intersect, natural_key, union

names = st.from_regex(r"[a-c]?-?[0-9]{0,3}(\.ib)?", fullmatch=True).filter(bool)
name_lists = st.lists(names, max_size=40)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("head", ["head"]),
        ("node[01-03,11],head", ["head", "node01", "node02", "node03", "node11"]),
        ("node[8-11]", ["node8", "node9", "node10", "node11"]),
        ("node[09-11]", ["node09", "node10", "node11"]),
        ("node[099-101]", ["node099", "node100", "node101"]),
        ("node[1-9/4]", ["node1", "node5", "node9"]),
        ("r[1-2]n[1-2]", ["r1n1", "r1n2", "r2n1", "r2n2"]),
        ("node[1-2].ib", ["node1.ib", "node2.ib"]),
        (" b , a ", ["a", "b"]),
        ("n1,n[1-2],n01", ["n01", "n1", "n2"]),
    ],
)
def test_a_set_expands_to_its_names_in_natural_order(text: str, expected: list[str]) -> None:
    assert expand(text) == expected


@pytest.mark.parametrize(
    ("folded", "text"),
    [
        ("", ""),
        ("head", "head"),
        ("head,node[01-03,11]", "node[01-03,11],head"),
        ("node[9-11]", "node10,node9,node11"),
        ("node[09-11]", "node10,node09,node11"),
        ("node[99-101]", "node[99-101]"),
        ("node[01,1-2]", "node1,node2,node01"),
        ("r1n[1-2],r2n[1-2]", "r[1-2]n[1-2]"),
        ("n[1-2],n[1-2].ib", "n[1-2].ib,n[1-2]"),
    ],
)
def test_names_fold_to_the_short_text(folded: str, text: str) -> None:
    assert fold(expand(text)) == folded


@given(name_lists)
def test_expanding_what_was_folded_gives_every_name_back(members: list[str]) -> None:
    assert expand(fold(members)) == sorted(set(members), key=natural_key)


@given(name_lists, st.randoms(use_true_random=False))
def test_equal_sets_are_equal_texts(members: list[str], chance: random.Random) -> None:
    shuffled = list(members)
    chance.shuffle(shuffled)
    assert fold(shuffled + members) == fold(members)


@given(name_lists, name_lists)
def test_the_algebra_is_that_of_sets(left: list[str], right: list[str]) -> None:
    a, b = fold(left), fold(right)
    assert set(expand(union(a, b))) == set(left) | set(right)
    assert set(expand(difference(a, b))) == set(left) - set(right)
    assert set(expand(intersect(a, b))) == set(left) & set(right)


@pytest.mark.parametrize(
    "text",
    ["a,,b", ",", "a,", "a[", "a]", "a[]", "a[1", "a[[1]]", "a[1-]", "a[-1]", "a[x]", "a[1-3/0]", "a[3-1]", "a[1-02]"],
)
def test_what_is_no_node_set_is_refused_and_quoted(text: str) -> None:
    with pytest.raises(UsageError, match="is no node set") as caught:
        expand(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize("name", ["a b", "a;rm", "a\nb", "é", "a" * 300])
def test_a_name_that_no_host_can_have_is_refused(name: str) -> None:
    with pytest.raises(UsageError):
        expand(name)
    with pytest.raises(UsageError, match="is no node name"):
        fold([name])


def test_a_name_cannot_pass_for_several() -> None:
    with pytest.raises(UsageError):
        fold(["a,b"])
    with pytest.raises(UsageError):
        fold(["a[1-3]"])


def test_the_expansion_has_a_limit_that_is_reached_before_memory_is() -> None:
    assert len(expand(f"n[1-{EXPANSION_LIMIT}]")) == EXPANSION_LIMIT
    started_s = time.process_time()
    for text in (f"n[0-{EXPANSION_LIMIT}]", "n[0-999999999999]", "a[1-999]b[1-999]c[1-999]", "a[1-60000],b[1-60000]"):
        with pytest.raises(UsageError, match="more than 65536 names"):
            expand(text)
    with pytest.raises(UsageError, match="is no number or range"):
        expand(f"n[1-{'9' * 5000}]")
    with pytest.raises(UsageError, match="fold it first"):
        expand("n" * 10_000_000)
    assert time.process_time() - started_s < 10  # far from what expanding them would take

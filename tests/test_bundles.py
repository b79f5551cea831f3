"""Which copies of vaults belong together: those that share a checkpoint, the newest; a former one until then."""

from hypothesis import given
from hypothesis import strategies as st

from beo.headnode.bundles import RECENT, complete, kept
from beo.headnode.model import VaultCopy


def copy(node: str, *names: str, attempt: int = 1, nodes: int = 2, images: int = 1, ranks: int = 2) -> VaultCopy:
    """A copy that has these checkpoints in it."""
    checkpoints = tuple((name, images, ranks) for name in names)
    return VaultCopy(attempt, nodes, node, f"{node}-{attempt}-{'-'.join(names)}", 1, 1.0, checkpoints)


def bundles(copies: list[VaultCopy]) -> list[str]:
    return sorted(one.bundle for one in copies)


def test_copies_of_different_checkpoints_dont_count() -> None:
    assert complete([copy("n1", "2", "1"), copy("n2", "4", "3")]) == []


def test_copies_that_share_a_checkpoint_do_whichever_else_is_in_them() -> None:
    one, other = copy("n1", "2", "1"), copy("n2", "3", "2")
    assert complete([one, other]) == [one, other]


def test_a_former_copy_counts_until_the_others_of_the_next_have_come() -> None:
    first = [copy("n1", "1"), copy("n2", "1")]
    assert bundles(complete(kept([*first, copy("n1", "5")]))) == bundles(first)
    assert bundles(complete([*first, copy("n1", "5"), copy("n2", "5")])) == ["n1-1-5", "n2-1-5"]


def test_a_node_that_is_a_round_behind_is_waited_for() -> None:
    found: list[VaultCopy] = []
    for one in (copy("n1", "1"), copy("n1", "5"), copy("n2", "1"), copy("n1", "9"), copy("n2", "9")):
        found = kept([*found, one])
    assert bundles(found) == ["n1-1-9", "n2-1-9"]


def test_the_newest_of_several_counts() -> None:
    copies = [copy("n1", "1", "0"), copy("n2", "1", "0"), copy("n1", "2", "1"), copy("n2", "2", "1")]
    assert bundles(complete(copies)) == ["n1-1-2-1", "n2-1-2-1"]


def test_what_an_attempt_has_left_of_a_lost_checkpoint_doesnt_take_a_whole_ones_place() -> None:
    whole = [copy("n1", "1"), copy("n2", "1")]
    rest = copy("n1", "7", attempt=2, nodes=1)
    assert bundles(complete(kept([*whole, rest]))) == bundles(whole)


def test_a_nodes_copy_may_hold_the_images_of_several_ranks() -> None:
    found = [copy("n1", "1", nodes=3, images=2, ranks=3), copy("n2", "1", nodes=3, images=1, ranks=3)]
    assert complete(found) == found


def test_of_files_of_a_programs_own_every_node_has_a_copy() -> None:
    one, other = copy("n1"), copy("n2")
    assert complete([one]) == []
    assert complete([one, other]) == [one, other]


@given(st.lists(st.tuples(st.sampled_from(["n1", "n2"]), st.integers(0, 4), st.integers(1, 2)), max_size=30))
def test_what_isnt_kept_is_never_missed(told: list[tuple[str, int, int]]) -> None:
    held: list[VaultCopy] = []
    attempt = 1
    for node, number, ahead in told:
        before = complete(held)
        attempt = max(attempt, ahead)
        held = kept([*held, copy(node, str(number + 1), str(number), attempt=attempt)])
        after = complete(held)
        assert not before or (after and after[0].attempt >= before[0].attempt)
        assert len(held) <= 2 * 2 * (RECENT + 1)
        assert kept(held) == held

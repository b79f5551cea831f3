"""A warden's words, checked and turned into the journal's."""

from typing import Any

import msgspec
import pytest

from beo.worker import told
from tests.fake_node import result


def test_an_unknown_exit_status_is_no_success() -> None:
    lost = told.part_result(msgspec.convert(result(status=None), told.Result))
    assert (lost.reason, lost.ranks[0].status) == ("lost", 255)


@pytest.mark.parametrize(
    ("said", "reason", "note"),
    [
        ({}, "", ""),
        ({"reason": "ended: cancelled by ada"}, "ended", "cancelled by ada"),
        ({"reason": "silence: n2 is silent"}, "silence", "n2 is silent"),
        ({"reason": "time limit"}, "time limit", ""),
        ({"reason": "out of memory", "culprit": 0}, "out of memory", ""),
        ({"reason": "rank 0 was killed by SIGSEGV", "culprit": 0}, "rank", "rank 0 was killed by SIGSEGV"),
        ({"reason": "rank 5 was killed by SIGSEGV", "culprit": 5}, "peer", "rank 5 was killed by SIGSEGV"),
        ({"reason": "x" * 9_999}, "rank", "x" * told.NOTE_LENGTH_MAX),
    ],
)
def test_a_wardens_reason_becomes_the_journals(said: dict[str, Any], reason: str, note: str) -> None:
    made = told.part_result(msgspec.convert(result(status=1, **said), told.Result))
    assert (made.reason, made.note, made.culprit) == (reason, note, said.get("culprit", -1))


def test_an_exit_code_has_eight_bits_whatever_mpi_abort_was_called_with() -> None:
    assert told.part_result(msgspec.convert(result(status=0x1FF), told.Result)).ranks[0].status == 255

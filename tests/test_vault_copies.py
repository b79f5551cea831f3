"""A copy that must be made is tried until it is, whatever is in its way; any other is given up."""

import subprocess

import pytest

from beo.worker.copies import AGAIN_S, Copied, Copies, Wish


def test_a_copy_that_must_be_made_is_tried_again_where_no_process_can_be_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tries: list[float] = []

    def refuse(*_: object, **__: object) -> None:
        tries.append(1.0)
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    told: list[tuple[bool, Copied]] = []
    copies = Copies("/nowhere", lambda wish, copied: told.append((wish.must, copied)))
    copies.want(Wish(1, 1, "/nowhere", 0, 0, (), must=True))
    copies.tick(0.0)
    copies.tick(AGAIN_S / 2)
    assert (len(tries), told) == (1, [])
    copies.tick(AGAIN_S)
    assert (len(tries), told) == (2, [])
    copies.forget(1, 1)
    copies.want(Wish(2, 1, "/nowhere", 0, 0, ()))
    copies.tick(2 * AGAIN_S)
    assert [must for must, copied in told if copied.failed] == [False]

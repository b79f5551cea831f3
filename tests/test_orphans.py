"""What a head must cut off is kept: entries the cluster doesn't have, readable by whoever wants them back."""

from __future__ import annotations

from pathlib import Path

import pytest

from beo import events as ev
from beo.entries import Entry, hash_of
from beo.errors import BeoError
from beo.ha import orphans
from tests.world import spec


def entries(count: int, first: int = 5) -> list[Entry]:
    """Submissions in a row."""
    made, before = [], bytes(16)
    for index in range(first, first + count):
        data = ev.encode(ev.Submitted(index, f"key-{index}", "ann", 1, 1, (), spec(), 1.0))
        before = hash_of(before, index, 3, data)
        made.append(Entry(index, 3, before, data))
    return made


def test_what_was_put_aside_can_be_read_again(tmp_path: Path) -> None:
    folder = tmp_path / "orphans"
    orphans.put_aside(folder, entries(3), 12.5)
    (path,) = orphans.files(folder)
    found = orphans.read(path)
    assert [(o.index, o.epoch, o.time_s, o.kind) for o in found] == [(n, 3, 12.5, "Submitted") for n in (5, 6, 7)]
    assert [o.event for o in found] == [ev.decode(entry.data) for entry in entries(3)]
    assert orphans.count(folder) == 3
    assert path.stat().st_mode & 0o777 == 0o600, "scripts and environments of users are inside"


def test_the_same_cut_twice_is_one_file_and_nothing_is_none(tmp_path: Path) -> None:
    folder = tmp_path / "orphans"
    orphans.put_aside(folder, [], 1.0)
    assert not folder.exists()
    for _ in range(2):
        orphans.put_aside(folder, entries(3), 1.0)
    orphans.put_aside(folder, entries(2), 2.0)
    assert len(orphans.files(folder)) == 2 and orphans.count(folder) == 5


def test_an_entry_that_this_beo_cannot_read_is_kept_too(tmp_path: Path) -> None:
    strange = Entry(9, 3, bytes(16), b"\xff\x00 of a later beo")
    orphans.put_aside(tmp_path, [strange], 1.0)
    (orphan,) = orphans.read(orphans.files(tmp_path)[0])
    assert orphan.kind == "?" and orphan.index == 9


def test_a_line_cut_short_is_left_out_and_other_damage_is_named(tmp_path: Path) -> None:
    text = orphans.encode(entries(3), 1.0)
    path = tmp_path / "x.jsonl"
    path.write_bytes(text[:-9])
    assert [o.index for o in orphans.read(path)] == [5, 6]
    path.write_bytes(b"nonsense\n" + text)
    with pytest.raises(BeoError, match=r"x\.jsonl can't be read"):
        orphans.read(path)
    with pytest.raises(BeoError, match="can't be read"):
        orphans.read(tmp_path / "absent.jsonl")


def test_there_are_never_more_files_than_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orphans, "FILES_MAX", 3)
    for first in range(10, 60, 10):
        orphans.put_aside(tmp_path, entries(2, first), 1.0)
    kept = [orphans.read(path)[0].index for path in orphans.files(tmp_path)]
    assert kept == [30, 40, 50]

"""A journal of format 1, where snapshots were in the database, becomes one of format 2, where they are files.

It happens once, at the first opening by a beo that knows format 2, after the whole journal has been read and judged.
One transaction changes the tables, so whatever happens the journal is of one format or of the other.
"""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import ClassVar

from beo import snapshots
from beo.entries import BEGINNING, Position, Snapshot, crc_of, is_whole
from beo.reader import COLUMNS, Reader, connect
from beo.snapshots import Stamp


class FormerReader(Reader):
    """A journal of format 1, to be read only."""

    FORMAT: ClassVar = 1
    SCHEMA: ClassVar = {
        "entry": Reader.SCHEMA["entry"],
        "snapshot": f"CREATE TABLE snapshot ({COLUMNS}, state BLOB) STRICT",
    }

    def snapshot(self, index: int) -> Snapshot:
        """Return the snapshot at entry `index`; raises DamagedJournal if it isn't whole."""
        select = "SELECT idx, epoch, hash, crc, state FROM snapshot WHERE idx = ?"
        row = self._connection.execute(select, (index,)).fetchone()
        if not is_whole(row):
            raise self.damaged(f"the snapshot at entry {index} is damaged", "its CRC is wrong")
        return Snapshot(row[0], row[1], row[2], row[4])

    def _anchors(self) -> tuple[Position, list[Stamp]]:
        stamps = self._stamps()
        return (stamps[0].position if len(stamps) > 1 else BEGINNING), stamps

    def _check_snapshots(self, stamps: list[Stamp]) -> None:
        for stamp in stamps:
            self.snapshot(stamp.position.idx)


def upgrade(folder: Path, mark: tuple[int, bytes] | None) -> None:
    """Make the journal in `folder` one of format 2, if it is of format 1; `mark`: as in `Reader.verify`.

    Raises DamagedJournal if it isn't whole, with nothing changed; BeoError, OSError or sqlite3.Error if it can't be
    written, and then it is still of format 1.
    """
    with closing(FormerReader(folder)) as former:
        try:
            if former.format() != former.FORMAT:
                return
        except sqlite3.DatabaseError:
            return  # who reads it as format 2 says what is wrong
        _, cut, stamps, _ = former.verify(mark)
        for stamp in stamps:
            snapshots.write(folder, former.snapshot(stamp.position.idx))
        with closing(connect(former.database, "rw")) as writer:
            writer.execute("PRAGMA synchronous = FULL")
            writer.execute("BEGIN IMMEDIATE")
            writer.execute("DROP TABLE snapshot")
            writer.execute(Reader.SCHEMA["snapshot"])
            writer.execute(Reader.SCHEMA["cut"])
            writer.executemany("INSERT INTO snapshot VALUES (?, ?, ?, ?)", [(*s.position, s.crc) for s in stamps])
            writer.execute("INSERT INTO cut VALUES (?, ?, ?, ?)", (*cut, crc_of(*cut, b"")))
            writer.execute(f"PRAGMA user_version = {Reader.FORMAT}")
            writer.execute("COMMIT")

"""What the other head has of the output: the leader's ledger of positions. Pure.

A *track* is a file that the other head doesn't have to its end, or isn't known to have. Files without a track are the
same on both. While the pair is in step (`both`), what isn't durable on both is neither shown nor acknowledged; else the
leader's own disk is enough, and the other catches up meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["Lag", "Mirror"]

Key = tuple[int, int]  # job, attempt

WINDOW_BYTES = 2 * 1024 * 1024  # of one file under way: the other syncs one half while the second half travels
WINDOW_ALL_BYTES = 8 * 1024 * 1024  # of all files: an eighth of a second at 64 MB/s, which covers a slow fsync
RESEND_S = 1.0  # without an answer for so long, what is under way is sent again
RESEND_MAX_S = 8.0  # doubled up to here: a head that is slow or full isn't buried in repetitions


class Lag(NamedTuple):
    """How far the other head is behind.

    in_step: nothing was acknowledged or shown that isn't durable there too, and nothing will be. missing_bytes: what it
    lacks; -1: not known yet. stalled_s: for so long it has said nothing new, though something was sent or couldn't be.
    trouble: what its disk, or this one's, makes of it.
    """

    in_step: bool = False
    missing_bytes: int = -1
    stalled_s: float = 0.0
    trouble: str = ""


@dataclass(slots=True)
class _Track:
    """Positions in one file: have <= sent <= written, durable <= written, shown <= durable."""

    have: int  # the other has it, durably
    sent: int
    written: int
    durable: int  # here
    shown: int
    sure: bool = False  # `have` is what the other said; else only one piece goes out, to find out
    ask: bool = False  # a piece must go out, be it empty: the other's file is longer
    asked: bool = False
    tail: int = 0  # what the other has behind our end, by its chain
    waits_since: float = 0.0  # something is under way, and nothing new was heard; 0: nothing is
    resend_at: float = 0.0
    resend_s: float = RESEND_S

    @property
    def under_way(self) -> bool:
        return self.sent > self.have or self.asked

    @property
    def done(self) -> bool:
        return self.sure and not self.ask and self.have == self.written == self.shown


class Mirror:
    """The ledger. `both`: the pair is in step, or about to be."""

    def __init__(self, both: bool) -> None:
        """Begin with all files the same on both, as far as is known."""
        self.both = both
        self._tracks: dict[Key, _Track] = {}
        self._under_way = 0  # bytes

    def __contains__(self, key: object) -> bool:
        """Whether a file has a track."""
        return key in self._tracks

    def __len__(self) -> int:
        """How many files have a track."""
        return len(self._tracks)

    def grown(self, key: Key, before: int, after: int, sure: bool) -> None:
        """This head wrote a file on, from `before` to `after`, not durable yet; sure: it is the same on both so far."""
        track = self._tracks.get(key)
        if track is None:
            track = self._tracks[key] = _Track(before, before, before, before, before, sure)
        track.written = after

    def synced(self, key: Key, durable: int) -> None:
        """A file is durable here up to there."""
        if track := self._tracks.get(key):
            track.durable = durable
            self._show(key, track)

    def shown(self, key: Key, durable: int) -> int:
        """Return up to where readers may see a file that is durable here up to `durable`."""
        track = self._tracks.get(key)
        return track.shown if track else durable

    def agree(self, both: bool) -> list[Key]:
        """Wait for the other from now on, or no more; return the files of which more may be shown."""
        if self.both == both:
            return []
        self.both = both
        keys = list(self._tracks)
        for key in keys:
            self._show(key, self._tracks[key])
        return keys

    def heard(self, key: Key, have: int, now: float) -> None:
        """The other has a file durably up to `have`, the same as here."""
        track = self._tracks.get(key)
        if track is None:
            return
        if have > track.have or not track.sure:
            track.waits_since = now
            track.resend_s = RESEND_S
            track.resend_at = now + RESEND_S
        track.sure = True
        track.have = max(track.have, min(have, track.written))
        track.sent = max(track.sent, track.have)
        track.ask = track.ask and track.have < track.written
        track.asked = track.asked and track.have < track.sent
        if not track.under_way:
            track.waits_since = 0.0
        self._show(key, track)

    def parted(self, key: Key, have: int, size: int, tail: int, now: float) -> None:
        """The other's file is the same as here up to `have` alone; `size` of it is here, durable and shown if new.

        tail: the chain of the other's end.
        """
        track = self._tracks.setdefault(key, _Track(have, have, size, size, size))
        track.have = track.sent = have
        track.sure, track.ask, track.asked = False, True, False
        track.tail = tail
        track.waits_since = track.waits_since or now

    def doubt(self, keep: bool) -> None:
        """The other may have lost all that it had said; `keep` what is not shown yet: it must stay so."""
        for key, track in list(self._tracks.items()):
            if not keep or track.have == track.written == track.shown:
                del self._tracks[key]
            else:
                track.sent = track.have
                track.sure, track.ask, track.asked = False, True, False

    def drop(self, key: Key) -> None:
        """Follow a file no more: it is gone, or can't be read."""
        self._tracks.pop(key, None)

    def jobs_gone(self, jobs: frozenset[int]) -> None:
        """Follow no file of these jobs."""
        for key in [key for key in self._tracks if key[0] in jobs]:
            del self._tracks[key]

    def due(self) -> Iterator[tuple[Key, int, int]]:
        """Yield (file, position, tail) of pieces to send; files take turns.

        Each must be `sent`, or its file dropped, before the next is asked for.
        """
        self._under_way = sum(track.sent - track.have for track in self._tracks.values())
        found = True
        while found:
            found = False
            for key, track in list(self._tracks.items()):
                if self._may_send(track):
                    found = True
                    yield key, track.sent, track.tail

    def _may_send(self, track: _Track) -> bool:
        if track.sent >= track.written and (not track.ask or track.asked):
            return False
        if not track.sure and track.under_way:
            return False
        return track.sent - track.have < WINDOW_BYTES and self._under_way < WINDOW_ALL_BYTES

    def sent(self, key: Key, end: int, now: float) -> None:
        """A piece up to `end` went out."""
        track = self._tracks[key] = self._tracks.pop(key)  # the last in the row now
        if not track.under_way:
            track.resend_at = now + track.resend_s
        track.waits_since = track.waits_since or now
        self._under_way += end - track.sent
        track.sent = end
        track.asked = track.ask

    def repeat(self, now: float, all_of_it: bool = False) -> None:
        """Have sent again what was not answered in time, or all that is under way: the connection is another."""
        for track in self._tracks.values():
            if track.under_way and (all_of_it or now >= track.resend_at):
                track.sent = track.have
                track.asked = False
                track.resend_s = RESEND_S if all_of_it else min(2 * track.resend_s, RESEND_MAX_S)

    def next_at(self, latest: float) -> float:
        """Return when something is to be sent again, if that is before `latest`."""
        return min((track.resend_at for track in self._tracks.values() if track.under_way), default=latest)

    def waits_since(self) -> float:
        """Return since when an answer is due; 0: none is."""
        return min((track.waits_since for track in self._tracks.values() if track.waits_since), default=0.0)

    def missing_bytes(self) -> int:
        """Return how much the other lacks of the files with a track."""
        return sum(track.written - track.have for track in self._tracks.values())

    def in_step(self) -> bool:
        """Whether all that was shown is at the other, and nothing more will be shown that isn't."""
        return self.both and all(track.sure and track.have >= track.shown for track in self._tracks.values())

    def _show(self, key: Key, track: _Track) -> None:
        track.shown = max(track.shown, min(track.durable, track.have)) if self.both else track.durable
        if track.done:
            del self._tracks[key]

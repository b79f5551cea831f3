"""The witness: a vote on a third machine, for a pair of heads without workers. ``python -m beo.ha.witness``.

It runs nothing and knows nothing but which epoch it has promised and which value of the register it has taken, and that
is on its disk before any head hears of it. So it is the same voter after each restart. What it does not remember is
which lease ran when it ended; so it begins by promising nobody anything until the longest that it ever gave is over.
"""

from __future__ import annotations

import logging
import os
import queue
import sys
import threading
import time
import zlib
from pathlib import Path

import msgspec

from beo import daemon, lockfile, question, supervisor, votes, wire
from beo import messages as ms
from beo.config import Home, home, write_durably
from beo.errors import BeoError, reason
from beo.ha.register import RHO, Acceptor
from beo.votes import Cfg
from beo.worker.heads import Heads

SHOW_S = 0.5  # between two signs of life, as an agent gives them
LOOK_S = 30.0  # between two looks where the heads are
POLL_MS = 100
STATE_MAX_BYTES = 64 * 1024  # a few hundred
LEASE_MIN_S = 1.0  # held back at least, whatever is on record
CURE = "give it a new voice: 'beo witness' with a new token, which 'beo token --role witness' makes"

log = logging.getLogger("beo.witness")


class Voice(msgspec.Struct, frozen=True):
    """witness/state: under which name it votes, what it has promised and taken, and the longest lease it gave."""

    voter: str
    epoch: int = 0
    acc: Cfg | None = None
    lease_s: float = 0.0


def state_path(where: Home) -> Path:
    """Where a witness keeps its voice."""
    return where.path / "witness" / "state"


def write(path: Path, voice: Voice) -> None:
    """Replace the state durably: a sum, and the state as JSON. Raises OSError."""
    text = msgspec.json.encode(voice)
    write_durably(path, b"%08x\n%s\n" % (zlib.crc32(text), text), 0o600)


def read(path: Path) -> Voice:
    """Return the state. Raises BeoError where it is gone or damaged: to begin anew would be to break promises."""
    try:
        with path.open("rb") as file:
            total, text, rest = file.read(STATE_MAX_BYTES).split(b"\n")
        if rest or int(total, 16) != zlib.crc32(text):
            raise ValueError("its sum is wrong")
        return msgspec.json.decode(text, type=Voice)
    except FileNotFoundError:
        raise BeoError(f"{path} is gone", "what this witness has promised was in it", CURE) from None
    except OSError as error:
        raise BeoError(f"can't read {path}", reason(error), "make it readable to who runs the witness") from None
    except ValueError as error:  # of msgspec, too
        raise BeoError(f"{path} is damaged", reason(error), CURE) from None


class Witness:
    """One witness's daemon."""

    def __init__(self, where: Home) -> None:
        """Take the lock, read what was promised, connect to the heads."""
        self._home = where
        self._path = state_path(where)
        self._lock = lockfile.hold(supervisor.witness_lock(where))
        self._cluster = where.cluster()
        self._secret = where.secret("witness")
        self._voice = read(self._path)
        self._acceptor = Acceptor(self._voice.voter, self._voice.epoch, self._voice.acc)
        held_s = max(LEASE_MIN_S, self._voice.lease_s) * (1 + RHO)
        self._acceptor.hold("nobody", time.clock_gettime(time.CLOCK_BOOTTIME) + held_s)
        self._context = wire.new_context()
        self._poller = wire.Poller()
        self._waker = wire.Waker()
        self._poller.register(self._waker.fileno(), wire.POLLIN)
        present = votes.Present(self._voice.voter)
        self._heads = Heads(
            self._cluster.heads, self._connect, self._poller, present, acceptor=self._acceptor, keep=self._keep
        )
        self._told: queue.SimpleQueue[tuple[ms.HeadView, ...]] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._scout = threading.Thread(target=self._look, name="scout", daemon=True)

    def _connect(self, address: str) -> wire.Connection:
        return wire.Connection(address, self._cluster.key, self._secret, self._context)

    def _keep(self, question: votes.HeadQuestion) -> None:
        """Make durable what an answer is about to show. Raises OSError: what can't be kept must not be said."""
        voice = self._voice
        lease_s = max(voice.lease_s, question.lease_s) if isinstance(question, votes.Lease) else voice.lease_s
        now = Voice(voice.voter, self._acceptor.epoch, self._acceptor.acc, lease_s)
        if now != voice:
            write(self._path, now)
            self._voice = now

    def run(self) -> None:
        """Serve until stopped. Raises OSError where the disk takes nothing."""
        self._scout.start()
        log.info("%s votes for the heads at %s", self._voice.voter, ", ".join(self._cluster.heads))
        next_s = 0.0
        while not self._stopping.is_set():
            now_s = time.monotonic()
            if now_s >= next_s:
                next_s = now_s + SHOW_S
                self._heads.show()
            self._poller.poll(POLL_MS)
            self._waker.clear()
            for head, message in self._heads.receive():
                if isinstance(message, ms.Failed):
                    log.warning("the head at %s refuses: %s", head, message.error.get("what", ""))
            while not self._told.empty():
                views = self._told.get_nowait()
                control, bulk = tuple(view.control for view in views), tuple(view.bulk for view in views)
                self._cluster = self._home.learn(self._cluster, control, bulk)
                self._heads.learn(self._cluster.heads)

    def _look(self) -> None:
        """Ask now and then where the heads are: a second one may have joined, or one moved. In a thread: it waits."""
        while True:
            cluster = self._cluster
            found = question.look(cluster.heads, cluster.key, self._secret, ms.AskPair(), ms.PairIs)
            for view in found.values():
                if isinstance(view, ms.PairIs) and view.heads:
                    self._told.put(view.heads)
                    self._waker.wake()
                    break
            if self._stopping.wait(LOOK_S):
                return

    def stop(self, *_: object) -> None:
        """Let `run` return; also a signal handler."""
        self._stopping.set()
        self._waker.wake()

    def close(self) -> None:
        """Release everything."""
        self._stopping.set()
        if self._scout.is_alive():
            self._scout.join()
        self._heads.close()
        self._waker.close()
        self._context.destroy(linger=0)
        os.close(self._lock)


def main() -> int:
    """Run a witness until SIGTERM or SIGINT; 0 for a clean end."""
    return daemon.main("witness", lambda: Witness(home()))


if __name__ == "__main__":
    sys.exit(main())

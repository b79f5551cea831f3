"""A whole cluster on hosts of a network: heads, workers and a client, with those who look at it from inside.

with network(folder, 0) as net:
    site = Site(net, heads=1, workers=3)
    site.start_visitor(seed)
    ...
    faults = site.end()
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from beo.messages import PairIs
from tests import history
from tests.cluster import BEO, LEASE_S, able, wait_for
from tests.net import prober, visitor
from tests.net.hosts import Host, Network

SETTINGS = f"[worker]\nlease_s = {LEASE_S}\n"
PORT = 7420  # of a head's control plane
DISK_BYTES = 96 << 20  # of a head: more than it wants free before it takes a job
BACK_S = 60.0  # within which everything has to be up again once nothing is hurt any more
SLOTS = 3

# What a machine's init does until it succeeds.
_UP = f"until {' '.join(BEO)} up >/dev/null 2>&1; do sleep 0.2; done"


def said(host: Host, *words: str) -> str:
    """What `beo WORDS` prints on a host, where it has to succeed."""
    done = host.beo(*words)
    assert done.returncode == 0, f"{host.name}: beo {' '.join(words)}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def tokens_line(host: Host, *words: str) -> list[str]:
    """The words of the command that `beo token` prints, without `beo`."""
    return said(host, "token", *words).split()[1:]


class Site:
    """Hosts with a cluster on them that is up."""

    def __init__(
        self,
        net: Network,
        folder: Path,
        heads: int,
        workers: int,
        settings: Callable[[Host], str] = lambda _: SETTINGS,
        before: Callable[[Host], None] = lambda _: None,
        links: Collection[int] = (),
        disk_bytes: int = DISK_BYTES,
    ) -> None:
        """Make and join them all. folder: where jobs and clients write what happened.

        settings: of each head. before: done on the host of each before it becomes one. links: as for `Network.add`.
        disk_bytes: of each head's disk.
        """
        self.net = net
        self.folder = folder
        self.notes = folder / "notes"
        self.heads = [net.add(links, disk_bytes) for _ in range(heads)]
        self.workers = [net.add(links) for _ in range(workers)]
        self.client = net.add(links)
        self.history = history.History(self.notes)
        self._visitor: subprocess.Popen[str] | None = None
        self._probing = False
        first = self.heads[0]
        for host in self.heads:
            host.beo_dir.mkdir(mode=0o700)
            (host.beo_dir / "beo.toml").write_text(settings(host))
            before(host)
        said(first, "head", "init")
        for host in self.heads[1:]:
            said(host, *said(first, "head", "token").split()[1:])
        line = tokens_line(first, "--uses", str(workers))
        joins: list[Callable[[], str]] = [
            lambda host=host: said(host, *line, "--slots", str(SLOTS))  # type: ignore[misc]
            for host in self.workers
        ]
        login = tokens_line(first, "--role", "admin")
        with ThreadPoolExecutor(len(joins) + 1) as pool:
            for future in [pool.submit(join) for join in (*joins, lambda: said(self.client, *login))]:
                future.result()

    # ---- what goes on meanwhile

    def up(self, host: Host) -> None:
        """Start on a host, in the background, all that belongs there, until it is up."""
        host.start("sh", "-c", _UP, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        if self._probing and host in self.heads:
            self._probe(host)

    def _probe(self, host: Host) -> None:
        log = self.folder / f"{host.name}.acts"
        words = [sys.executable, "-m", "tests.net.prober", f"{host.address}:{PORT}", str(log)]
        host.start(*words, stdout=subprocess.DEVNULL, stderr=(self.folder / f"{host.name}.prober").open("ab"))

    def start_visitor(self, seed: int) -> None:
        """Let clients go about their business, and ask every head without end whether it is the primary."""
        self._probing = True
        for host in self.heads:
            self._probe(host)
        words = [sys.executable, "-m", "tests.net.visitor", str(self.notes), str(self.folder / "visit"), str(seed)]
        out = (self.folder / "visitor.said").open("wb")
        self._visitor = self.client.start(*words, stdout=out, stderr=out)

    # ---- what the cluster says

    def said(self, *words: str) -> str:
        """What `beo WORDS` prints at the client's, where it has to succeed."""
        return said(self.client, *words)

    def pair(self) -> list[PairIs | None]:
        """What each head says of the pair; None for one that is silent."""
        words = [sys.executable, "-m", "tests.net.prober", "--pair"]
        done = self.client.run(*words, *(f"{host.address}:{PORT}" for host in self.heads))
        assert done.returncode == 0, done.stderr
        return msgspec.json.decode(done.stdout, type=list[PairIs | None])

    @property
    def primary(self) -> Host:
        """The host of the head that acts."""

        def acting() -> list[Host]:
            pairs = zip(self.heads, self.pair(), strict=True)
            return [host for host, view in pairs if view and view.role == "primary"]

        return wait_for(acting, "a primary")[-1]

    def await_step(self) -> None:
        """Return when what is acknowledged is durable on both heads, and either may go on: the workers vote."""

        def in_step() -> bool:
            views = [view for view in self.pair() if view]
            if self.workers:
                return able(views) is not None
            return sorted(view.role for view in views) == ["primary", "standby"] and all(v.in_step for v in views)

        wait_for(in_step, "both heads are in step, and who votes is a worker", BACK_S)

    def await_up(self) -> None:
        """Return when every node is up again."""

        def all_up() -> bool:
            done = self.client.beo("nodes", "--json")
            rows = msgspec.json.decode(done.stdout) if done.returncode == 0 else []
            return [row["state"] for row in rows] == ["up"] * len(self.workers)

        wait_for(all_up, "all nodes are up", BACK_S)
        if len(self.heads) > 1:
            self.await_step()

    def end(self) -> list[str]:
        """Let the clients come to their end, and return what is wrong with what happened, in words."""
        assert self._visitor
        self.notes.with_suffix(".stop").touch()
        self._visitor.wait(4 * visitor.LAST_WAIT_S)
        found = self._take()
        for host in self.heads:
            self.history.acts += prober.read(self.folder / f"{host.name}.acts")
        if not self.history.acts:
            found.append("no head was ever seen to act")
        return found + self.history.faults(self._told.rows, self._told.events, untold=True)

    def _take(self) -> list[str]:
        """Put into the history what the clients have written down."""
        self._told = visitor.Told([], [])
        found = []
        for word in visitor.read(self.folder / "visit"):
            match word:
                case visitor.Acknowledged():
                    self.history.acknowledged(word.tag, word.job, word.t_ns)
                case visitor.Wished():
                    self.history.cancelled(word.tag)
                case visitor.Watched():
                    self.history.views.append(word.view)
                case visitor.Followed():
                    self._follow(word)
                case visitor.Told():
                    self._told = word
                case visitor.Failed():
                    found.append(f"a client failed: {word.why}")
        if not self._told.rows:
            found.append(f"the clients came to no end: {(self.folder / 'visitor.said').read_text()[-2000:]}")
        return found

    def _follow(self, word: visitor.Followed) -> None:
        """A follower that came to its end saw all; of another one the lines that it saw are looked at."""
        text = Path(word.path).read_text()
        whole = word.code == 0
        if not whole:
            text = text[: text.rfind("\n") + 1]
        if word.who == "run" and whole:  # it was told how the job ended
            [job] = {note.job for note in self.history.notes(word.tag)}
            self.history.acknowledged(word.tag, job)
        elif word.who == "run":
            self.history.cancelled(word.tag)
        self.history.followed(word.tag, word.who, history.said(text), whole)

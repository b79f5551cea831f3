"""Chunks in a real cluster's tree, and the processes of nodes that bring them, to be killed and started again."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from beo.bulk import words
from beo.tree import plans
from beo.tree.files import Files, new_tag
from beo.tree.locate import session
from beo.tree.session import ROOT_CALLER
from tests.cluster import ROOT, Cluster, wait_for

UID = 1234


def chunks(seed: int, count: int, size: int) -> dict[str, bytes]:
    """Return bytes by their digests."""
    rng = random.Random(seed)
    made = [rng.randbytes(size) for _ in range(count)]
    return {words.digest(data): data for data in made}


def put_chunks(cluster: Cluster, made: dict[str, bytes], uid: int = UID) -> None:
    """Put chunks into the tree, as a stager does."""
    with Files(session(cluster.home, cluster.home.secret("worker")), ROOT_CALLER) as files:
        for digest in made:
            files.do(plans.make_folders(f"/{words.FOLDER}/{uid}/{digest[:2]}", 0o700))
        todo = [
            plans.write(f"/{words.FOLDER}/{uid}/{digest[:2]}/{digest}", iter([data]), new_tag(), 0o600)
            for digest, data in made.items()
        ]
        for _, result in files.do_all(todo):
            if isinstance(result, OSError):
                raise result


class BulkNode:
    """The process of one node."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.cluster, self.name = cluster, name
        self.folder = cluster.home.nodes / name / "bulk"
        self.log = cluster.home.logs / f"bulk-{name}.log"
        self.start()

    def start(self) -> None:
        """Start it."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "beo.bulk.node", self.name],
                env={**self.cluster.env, "BEO_LOG": "debug"},
                cwd=ROOT,
                stdout=log,
                stderr=log,
            )

    def kill(self) -> None:
        """End it as by SIGKILL."""
        self.process.kill()
        self.process.wait()

    def held(self) -> set[str]:
        """Which digests it holds."""
        return {path.name for path in (self.folder / "held").glob("*/*")}

    def address(self) -> str:
        """Where it serves."""
        wait_for(lambda: self.log.exists() and "chunks are served at" in self.log.read_text(), "the node serves")
        return self.log.read_text().rpartition("chunks are served at ")[2].split()[0]


@contextmanager
def nodes(cluster: Cluster, names: Sequence[str]) -> Iterator[list[BulkNode]]:
    """Processes of nodes, which hold nothing yet; ended at the end."""
    for name in names:
        shutil.rmtree(cluster.home.nodes / name / "bulk", ignore_errors=True)
        os.makedirs(cluster.home.nodes / name, 0o700, exist_ok=True)
    made = [BulkNode(cluster, name) for name in names]
    try:
        yield made
    finally:
        for one in made:
            one.process.terminate()
        for one in made:
            one.process.wait(10)

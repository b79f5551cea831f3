"""Where the tree is served: asked of the cluster, from whichever thread needs to know."""

from __future__ import annotations

import time

from beo.client import Cluster
from beo.config import Home
from beo.tree.session import Session

PATIENCE_S = 5.0  # for a head that acts: a take-over takes less
STARTING_S = 0.02  # between two questions while it is being started


class Locator:
    """Asks the cluster of a folder. For one thread at a time."""

    def __init__(self, home: Home, patience_s: float = PATIENCE_S, secret: str = "") -> None:
        """Nothing is asked yet. secret: a key to ask by, other than this user's own."""
        self._home = home
        self._secret = secret
        self._patience_s = patience_s

    def __call__(self) -> str:
        """Return the address; "" where it is not served after all that time. Raises BeoError where no head answers."""
        with Cluster(self._home, self._secret) as cluster:
            deadline = time.monotonic() + self._patience_s
            while not (address := cluster.tree(self._patience_s)) and time.monotonic() < deadline:
                time.sleep(STARTING_S)
            return address


def session(home: Home, secret: str, patience_s: float = PATIENCE_S) -> Session:
    """Return a new session with the tree of a folder's cluster, by this user's secret key."""
    return Session(Locator(home, patience_s), home.cluster().key, secret)


def node_session(home: Home, remembers: bool = False) -> Session:
    """Return a new session of the node itself: a worker's machine has no other key than its own. remembers: see
    `Session`."""
    secret = home.secret("worker")
    return Session(Locator(home, secret=secret), home.cluster().key, secret, remembers)

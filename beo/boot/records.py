"""The heads' records of machines, as the server of boots asks for them (book.py)."""

from __future__ import annotations

import threading

from beo.boot.book import Machine
from beo.client import Cluster
from beo.config import Home
from beo.messages import MachineView

PATIENCE_S = 3.0  # for a head that acts: a take-over takes less; a client that asks for an address asks again


class Records:
    """A `Book` whose every word is the cluster's. It may be asked from several threads, one at a time."""

    def __init__(self, home: Home) -> None:
        """Take the cluster's folder, in which its admin key is."""
        self._cluster = Cluster(home)
        self._lock = threading.Lock()

    def lease(self, mac: str, hostname: str = "") -> Machine:
        """Return the machine with that MAC address, which is on record from then on, durably."""
        with self._lock:
            return _machine(self._cluster.lease_machine(mac, hostname, PATIENCE_S))

    def open(self, mac: str, address: str) -> Machine:
        """The machine fetches its boot script, from this address: it is expected to join soon."""
        with self._lock:
            return _machine(self._cluster.open_machine(mac, address, PATIENCE_S))

    def close(self) -> None:
        """Close the connection to the head."""
        with self._lock:
            self._cluster.close()


def _machine(view: MachineView) -> Machine:
    return Machine(view.mac, view.name, view.address, view.image, view.policy, view.state)

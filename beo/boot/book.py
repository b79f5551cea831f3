"""What the server of boots has to know of machines and images, and of whom it asks it: the heads' records. Pure.

The records are the cluster's, replicated like everything else, so the other head answers the same after a take-over:
there is no file of leases that could say something else.
"""

from __future__ import annotations

from typing import Protocol

import msgspec


class Machine(msgspec.Struct, frozen=True):
    """A machine on record. address: "" where another server gives it; image: a SHA-256, or "current"."""

    mac: str
    name: str
    address: str = ""
    image: str = "current"
    policy: str = ""
    state: str = ""


class Image(msgspec.Struct, frozen=True):
    """What a machine boots: the root image, by its SHA-256 and size, and the SHA-256 of its kernel and its initrd.

    words: what its kernel's command line has besides, like the console to use.
    """

    sha256: str
    size_bytes: int
    kernel: str
    initrd: str
    words: str = ""


class Book(Protocol):
    """The heads' records. Each may take seconds, and raises BeoError."""

    def lease(self, mac: str, hostname: str = "") -> Machine:
        """Return the machine with that MAC address, which is on record from then on, durably."""
        ...

    def open(self, mac: str, address: str) -> Machine:
        """The machine fetches its boot script, from this address: it is expected to join soon."""
        ...


class Shelf(Protocol):
    """The images of this head, and their files."""

    def image(self, name: str) -> Image:
        """Return an image by its SHA-256, or the "current" one; raises BeoError."""
        ...

    def path(self, kind: str, sha256: str) -> str:
        """Return the file of a "kernel", "initrd" or "image"; raises NotFound."""
        ...

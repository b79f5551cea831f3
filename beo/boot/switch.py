"""Whether machines may boot from this head, and by which interface: as beo.toml says, or `beo boot serve` since.

The word is this machine's alone, since another head's interface has another name, and outlives restarts.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from beo.config import Home, write_durably
from beo.errors import Conflict
from beo.settings import BootMode

SIZE_MAX_BYTES = 64 * 1024


class Switch(msgspec.Struct, frozen=True):
    """interface: "" for none. mode: "off" where nothing is served."""

    interface: str = ""
    mode: BootMode = "off"

    @property
    def is_on(self) -> bool:
        """Whether anything is to be served."""
        return bool(self.interface) and self.mode != "off"


class Status(msgspec.Struct, frozen=True):
    """How the server of boots of this machine fares, as it says itself. part: dhcp, proxy or "" while it
    listens. other: the DHCP server that gives addresses there, "" where none is known. sent: images by this head;
    referred: machines that were sent to another one for it; givers: machines that have it, and give it.
    """

    pid: int
    said_s: float  # of CLOCK_BOOTTIME
    interface: str
    address: str  # with its prefix
    http: str
    mode: str
    part: str
    range: str
    other: str
    answered: int
    sent: int
    connected: int
    troubles: tuple[str, ...]
    referred: int = 0
    givers: int = 0


def switch_path(home: Home) -> Path:
    """Where the word is kept."""
    return home.head / "boot.json"


def status_path(home: Home) -> Path:
    """Where the server says how it fares."""
    return home.path / "run" / "boot.json"


def read(home: Home) -> Switch:
    """Return what holds now."""
    try:
        with switch_path(home).open("rb") as file:
            return msgspec.json.decode(file.read(SIZE_MAX_BYTES), type=Switch)
    except FileNotFoundError:
        boot = home.config().boot
        return Switch(boot.interface, boot.mode if boot.interface else "off")
    except (OSError, msgspec.MsgspecError) as error:
        cure = "say 'beo boot serve' or 'beo boot off' again"
        raise Conflict(f"{switch_path(home)} can't be read", str(error).lower(), cure) from None


def write(home: Home, switch: Switch) -> None:
    """Let this hold from now on."""
    write_durably(switch_path(home), msgspec.json.encode(switch) + b"\n", 0o644)


def say(home: Home, status: Status) -> None:
    """Say how the server fares."""
    path = status_path(home)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    scratch = path.with_suffix(".new")
    scratch.write_bytes(msgspec.json.encode(status))  # of no use after a power cut: nobody need wait for the disk
    scratch.replace(path)


def ask(home: Home) -> Status | None:
    """Return what the server said last; None where it never did."""
    try:
        return msgspec.json.decode(status_path(home).read_bytes()[:SIZE_MAX_BYTES], type=Status)
    except (OSError, msgspec.MsgspecError):
        return None

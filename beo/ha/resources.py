"""What a head does around its role: it carries the service address and runs the programs of ``[[ha.on_promote]]``.

The head's loop says at each turn what it is (`follow`); everything else happens in threads.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from pathlib import Path

import msgspec

from beo.config import Home
from beo.errors import reason
from beo.ha import verify
from beo.ha.address import ServiceAddress
from beo.ha.duties import Duty
from beo.ha.programs import Fare, Programs
from beo.settings import HaConfig

log = logging.getLogger("beo.ha")


class Standings(msgspec.Struct, frozen=True):
    """How the resources of this head fare: for `beo ha status`."""

    address: str  # the service address; "": there is none
    holds: bool  # this machine has it now
    programs: tuple[Fare, ...]
    troubles: tuple[str, ...]  # what is wrong, a line each with its cure

    @property
    def facts(self) -> dict[str, str]:
        """What of it others are told: the address that this head has, and the programs that aren't down."""
        running = ", ".join(f"{fare.name} {fare.state}" for fare in self.programs if fare.state != "down")
        told = {verify.HOLDS: self.address if self.holds else "", verify.PROGRAMS: running}
        return {name: text for name, text in told.items() if text}


def record_path(home: Home) -> Path:
    """Where it is written what programs were begun."""
    return home.path / "run" / "promoted.json"


def output_path(home: Home) -> Path:
    """What the programs print."""
    return home.logs / "on_promote.log"


def missing_programs(config: HaConfig) -> tuple[str, ...]:
    """Return those of on_promote's programs that this machine does not have."""
    words = [
        found for program in config.on_promote for key in ("start", "stop", "run") if (found := program.words(key))
    ]
    return tuple(dict.fromkeys(found[0] for found in words if not shutil.which(found[0])))


class Resources:
    """Those of one head. No method but `close` waits for anything."""

    def __init__(self, home: Home, head: str, config: HaConfig, listen: str) -> None:
        """Take up what an earlier life of this head left. head: its letter. listen: where it listens, HOST:PORT."""
        self._troubles: list[str] = []
        self._address = self._open(config, listen) if config.address else None
        env = {
            "BEO_DIR": str(home.path),
            "BEO_HEAD": head,
            "BEO_ADDRESS": self._address.address if self._address else "",
        }
        wanted = config.on_promote
        if wanted and (why := _distrust(home.toml)):
            cure = f"chmod 600 {home.toml}, and restart this head"
            self._troubles.append(
                f"no program of on_promote is run ({why}, who could have this head run anything): {cure}"
            )
            log.error("%s", self._troubles[-1])
            wanted = ()
        self._programs: Programs | None = None
        if wanted or record_path(home).exists():
            self._programs = Programs(record_path(home), output_path(home), wanted, env)
        has_left = bool(self._programs and self._programs.left)
        has_address = self._address is not None
        self._duty = Duty(_now_s(), has_address=has_address, has_left=has_left, lease_s=config.lease_s)
        self._down_max_s = config.down_max_s

    def follow(self, *, primary: bool, may_act: bool, epoch: int, follows: bool = False) -> None:
        """Do what the role of now means; to be called at each turn of the loop.

        primary, may_act: the role and the lease. follows: this head hears from another primary.
        """
        address, programs = self._address, self._programs
        if address is None and programs is None:
            return
        holds = address is not None and address.is_held
        duties = self._duty.decide(_now_s(), primary=primary, may_act=may_act, follows=follows, holds=holds)
        if address and duties.address is not None:
            (address.renew if duties.address else address.release)()
        if programs and duties.programs is not None:
            if duties.programs:
                programs.promote(epoch)
            else:
                programs.demote()

    def standings(self) -> Standings:
        """Return how they fare."""
        address, programs = self._address, self._programs
        troubles = [
            *self._troubles,
            *(address.troubles if address else []),
            *(programs.troubles if programs else []),
        ]
        return Standings(
            address.address if address else "",
            address.is_held if address else False,
            tuple(programs.fares()) if programs else (),
            tuple(troubles),
        )

    def close(self) -> None:
        """Let the address go, end the programs in reverse, and return when that is done."""
        if self._address:
            self._address.close()
        if self._programs and not self._programs.close(self._down_max_s):
            log.error("on_promote: not all have ended")

    def _open(self, config: HaConfig, listen: str) -> ServiceAddress | None:
        try:
            return ServiceAddress(config.address, config.interface, listen)
        except OSError as error:
            self._troubles.append(f"no service address ({reason(error)}): this kernel has no rtnetlink")
            log.warning("%s", self._troubles[-1])
            return None


def _distrust(toml: Path) -> str:
    """Say who else may write a settings file; "" where only we and root can. Its programs run as this head does."""
    try:
        status = toml.stat()
    except OSError:
        return ""  # settings without a file come from whoever made this object
    if status.st_uid not in (0, os.geteuid()):
        return f"{toml} is another user's"
    return f"others may write to {toml}" if status.st_mode & 0o022 else ""


def _now_s() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)

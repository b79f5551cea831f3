"""An account of a machine, as far as jobs and their owners go: who a uid is, and which groups are his."""

from __future__ import annotations

import msgspec


class Account(msgspec.Struct, frozen=True):
    """Who a uid is on one machine. gids: his groups, the first one first; none at all: there is no such account."""

    uid: int
    name: str
    gids: tuple[int, ...] = ()
    home: str = ""
    shell: str = ""

    def environment(self) -> dict[str, str]:
        """What a login would say of him."""
        if not self.gids:
            return {}
        return {"HOME": self.home, "SHELL": self.shell, "USER": self.name, "LOGNAME": self.name}

"""Looking accounts up on this machine: passwd and group files, or whatever the machine has in their place.

Remembered for a while, since a directory service may be asked for each, and a daemon's loop waits meanwhile.
"""

from __future__ import annotations

import os
import time

from beo.account import Account

KEEP_S = 60.0  # so long at most is a removed group still believed
KEEP_MAX = 10_000  # accounts; more than a cluster has users


class Accounts:
    """The accounts of this machine; for one thread."""

    def __init__(self) -> None:
        """Remember none."""
        self._known: dict[int, tuple[float, Account]] = {}

    def look(self, uid: int) -> Account:
        """Return who a uid is; one without an account is called `uid1234` and has no groups."""
        now_s = time.monotonic()
        known = self._known.get(uid)
        if known and now_s - known[0] < KEEP_S:
            return known[1]
        if len(self._known) >= KEEP_MAX:
            self._known.clear()
        account = look_up(uid)
        self._known[uid] = (now_s, account)
        return account


def look_up(uid: int) -> Account:
    """Ask the machine who a uid is."""
    import pwd

    try:
        found = pwd.getpwuid(uid)
    except (KeyError, OverflowError):
        return Account(uid, f"uid{uid}")
    gids = os.getgrouplist(found.pw_name, found.pw_gid)
    return Account(uid, found.pw_name, tuple(dict.fromkeys([found.pw_gid, *gids])), found.pw_dir, found.pw_shell)

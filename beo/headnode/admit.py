"""Who may use the cluster: what a knock at a door becomes, and what an admin says about users. Pure.

A door is a socket of a machine whose daemon runs as root: the kernel told it who knocked, so the name needs no proof,
only the key is new. The head's own door and that of a worker (which vouches for its users) come to the same decision.
"""

from __future__ import annotations

import string

from beo import events as ev
from beo.account import Account
from beo.errors import Conflict, NotFound, Refused, UsageError
from beo.headnode.acts import Knock
from beo.headnode.model import Authorized
from beo.headnode.state import State

KEYS_PER_USER_MAX = 64  # one for each machine that he works from; a program that makes keys in a loop stops there
USERS_MAX = 10_000  # whom the doors let in
GROUPS_MAX = 256  # kept of one who has no account; what the kernel tells of more isn't taken
KEY_LENGTH = 40
WITNESS = "witness:"  # before the name of one, so that no worker has the same
Z85 = frozenset(string.ascii_letters + string.digits + ".-:+=^!/*?&<>()[]{}@%$#")


def knock(state: State, wish: Knock, account: Account, now_s: float) -> list[ev.Event]:
    """Let somebody in under his account's name, or raise the error that tells him why not. Repeating it is harmless."""
    if len(wish.key) != KEY_LENGTH or not Z85.issuperset(wish.key):
        raise UsageError("this is no public key", f"it has {KEY_LENGTH} characters of Z85", "update this beo")
    if wish.uid == 0:
        raise Refused(
            "root gets no key at a door",
            "he isn't one user of many",
            "use the head's machine, or 'beo login' with a token",
        )
    name = account.name
    if name in state.barred:
        raise Refused(f"{name} is barred from this cluster", "by an admin", "ask the cluster's operator")
    if wish.key in state.revoked:
        raise Refused("this key was revoked", "by an admin", "remove it, and a new one is made; or ask the operator")
    known = state.authorized.get(wish.key)
    if known:
        if (known.user, known.uid) != (name, wish.uid):
            raise Refused("this key is another user's", "", "remove it, and a new one is made")
        return []
    own = check_name(state, name, wish.uid)
    names = {found.user for found in state.authorized.values()}
    if len(own) >= KEYS_PER_USER_MAX:
        cure = f"an admin clears them by 'beo users revoke {name}' and 'beo users allow {name}'"
        raise Conflict(f"{name} has {len(own)} keys already", f"the limit is {KEYS_PER_USER_MAX}", cure)
    if name not in names and len(names) >= USERS_MAX:
        raise Conflict(f"the cluster knows {len(names)} users already", "it can't know more", "revoke some of them")
    groups = () if account.gids else tuple(sorted(set(wish.groups)))[:GROUPS_MAX]
    return [ev.KeyAuthorized(wish.key, name, "user", now_s, wish.uid, "", wish.gid, groups)]


def check_name(state: State, name: str, uid: int) -> list[Authorized]:
    """Return the keys that a user has; Refused where the name is somebody else's, whose jobs he would get."""
    own = [found for found in state.authorized.values() if found.user == name]
    if any(found.role != "user" or found.uid != uid for found in own):
        raise Refused(f"the name {name} is taken by another user of this cluster", "", "choose another name")
    return own


def vouch(state: State, node: str, wish: Knock, account: Account, now_s: float) -> list[ev.Event]:
    """The same by the word of a worker, which is believed if its daemon is root there."""
    known = state.nodes.get(node)
    if not known or known.facts.get("uid") != "0":
        raise Refused(f"{node} can't say who its users are", "its daemon doesn't run as root", "use 'beo login'")
    return knock(state, wish, account, now_s)


def revoke(state: State, by: str, word: str, now_s: float) -> list[ev.Event]:
    """Take a key (by its first characters), or all keys of a user and bar him from the doors."""
    keys = tuple(sorted(key for key, found in state.authorized.items() if found.user == word))
    if keys:
        _spare(state.authorized[keys[0]], word)
        return [ev.KeysRevoked(keys, word, True, by, now_s)]
    if word.startswith(WITNESS) and word in state.node_keys:
        return [ev.KeysRevoked((state.node_keys[word],), word, False, by, now_s)]
    keys = tuple(sorted(key for key in state.authorized if len(word) >= 8 and key.startswith(word)))
    if len(keys) > 1:
        raise UsageError(f"{len(keys)} keys begin with {word}", "", "give more of it")
    if not keys:
        users = {found.user for found in state.authorized.values() if found.role == "user"}
        raise NotFound.among("user or key", word, users, "see 'beo users'")
    found = state.authorized[keys[0]]
    _spare(found, word)
    return [ev.KeysRevoked(keys, found.user, False, by, now_s)]


def _spare(found: Authorized, word: str) -> None:
    if found.role != "user":
        raise Refused(f"{word} is of role {found.role}", "without that key the cluster is lost", "revoke users only")


def allow(state: State, by: str, name: str, now_s: float) -> list[ev.Event]:
    """Let a barred user come to the doors again."""
    if name not in state.barred:
        raise NotFound.among("barred user", name, state.barred, "see 'beo users'")
    return [ev.UserAllowed(name, by, now_s)]

"""Who may have a key: tokens, the keys that are authorized by them, and which node a worker's key speaks for. Pure.

A token is known here by a public key alone. Its holder connects with the secret key that belongs to it and can ask for
nothing but `Enrol`: the key that he made for himself and the token's use become one entry, so that an answer that got
lost may be asked for again, and nobody else gets anything by the same token.
"""

from __future__ import annotations

import msgspec

from beo import events as ev
from beo import messages as ms
from beo import nodeset
from beo.errors import BeoError, Conflict, NotFound, Refused, UsageError
from beo.headnode.admit import WITNESS, check_name
from beo.headnode.heads import check_room
from beo.headnode.heads import listed as heads_listed
from beo.headnode.model import Token
from beo.headnode.state import State
from beo.units import format_duration

ROLES = ("worker", "user", "admin", "head", "witness")
MACHINES = ("worker", "head", "witness")  # nobody's: what they are called is what they are
KEY_LENGTH = 40  # of a CURVE key in Z85
USES_MAX = 4_096  # as many as a cluster has nodes
EXPIRES_MAX_S = 30 * 86_400.0  # a token is a password on paper: it should not outlive the month
NAME_LENGTH_MAX = 64
NAMED = ("worker", "witness")
VERBS = {
    "worker": "beo worker",
    "witness": "beo witness",
    "head": "beo head join",
    "user": "beo login",
    "admin": "beo login",
}
KEYS_MAX = 100_000  # that may connect; about 20 MB


def make(state: State, maker: str, wish: ms.MakeToken, now_s: float) -> tuple[list[ev.Event], ms.TokensAre]:
    """Take a token, once per key."""
    known = state.tokens.get(wish.key)
    if known:
        return [], ms.TokensAre((row(known, now_s),))
    if wish.role not in ROLES:
        raise NotFound.among("role", wish.role, ROLES, f"it is {', '.join(ROLES)}")
    if len(wish.key) != KEY_LENGTH or wish.key in state.authorized:
        raise UsageError("the token has no usable key", "", "make another with 'beo token'")
    if not 1 <= wish.uses <= USES_MAX:
        raise UsageError(f"a token for {wish.uses} uses", f"it has 1 to {USES_MAX}", "change --uses")
    if not 0 < wish.expires_s <= EXPIRES_MAX_S:
        raise UsageError(
            f"a token that expires in {format_duration(max(0.0, wish.expires_s))}",
            f"it lives for {format_duration(EXPIRES_MAX_S)} at most",
            "change --expires",
        )
    if wish.role == "user" and not 0 <= wish.uid <= ms.ID_MAX:
        raise UsageError(f"a token for uid {wish.uid}", f"a uid is 0 to {ms.ID_MAX}", "say --role user:NAME:UID")
    if wish.role == "head":
        check_room(state)
    if not 0 < len(wish.user) <= NAME_LENGTH_MAX or not wish.user.isprintable():
        raise UsageError(f"a token for {wish.user[:NAME_LENGTH_MAX]!r}", "that is no user's name", "change --role")
    if wish.role == "user":
        check_name(state, wish.user, wish.uid)
    expires_s = now_s + wish.expires_s
    uid = wish.uid if wish.role == "user" else -1
    user = wish.role if wish.role in MACHINES else wish.user
    event = ev.TokenMade(state.next_token, wish.key, wish.role, user, uid, wish.uses, expires_s, maker, now_s)
    made = Token(event.number, event.role, event.user, event.uid, event.uses, event.expires_s, event.maker)
    return [event], ms.TokensAre((row(made, now_s),))


def listed(state: State, now_s: float) -> ms.TokensAre:
    """Return all tokens on record."""
    return ms.TokensAre(tuple(row(token, now_s) for token in state.tokens.values()))


def revoke(state: State, user: str, numbers: tuple[int, ...], now_s: float) -> tuple[list[ev.Event], ms.TokensAre]:
    """End tokens by number."""
    by_number = {token.number: (key, token) for key, token in state.tokens.items()}
    missing = [number for number in numbers if number not in by_number]
    if missing:
        raise NotFound(f"no token {missing[0]}", "", "see 'beo token list'")
    meant = [by_number[number] for number in sorted(set(numbers))]
    events: list[ev.Event] = [ev.KeyRevoked(key, user, now_s) for key, token in meant if not token.gone]
    rows = tuple(row(msgspec.structs.replace(token, gone=True), now_s) for _, token in meant)
    return events, ms.TokensAre(rows)


def row(token: Token, now_s: float) -> ms.TokenView:
    """One row of `beo token list`."""
    return ms.TokenView(
        token.number,
        _state(token, now_s),
        token.role,
        token.user,
        token.uid,
        token.uses,
        len(token.used),
        max(0.0, round(token.expires_s - now_s, 3)),
        token.maker,
    )


def _state(token: Token, now_s: float) -> str:
    if token.gone:
        return "revoked"
    if len(token.used) >= token.uses:
        return "used"
    return "expired" if now_s >= token.expires_s else "open"


def enrol(
    state: State, token_key: str, wish: ms.Enrol, bulk: str, now_s: float
) -> tuple[list[ev.Event], ms.EnrolledIs]:
    """Authorize a newcomer's own key, once per key; Refused says why the token is of no use (any more)."""
    token = state.tokens[token_key]
    known = state.authorized.get(wish.key)
    events: list[ev.Event] = []
    if known and (known.role, known.user) == (token.role, token.user):  # asked again, or in vain: nothing is used up
        node = known.node
        if wish.node and wish.node != node.removeprefix(WITNESS):
            raise Conflict(f"this machine is {node} already", f"not {wish.node}", "leave --name")
    else:
        _check_token(token, now_s)
        if wish.role not in ("", token.role):
            why = f"not for a {wish.role}" if wish.role in ROLES else ""
            raise Refused(f"this token is for {_article(token.role)}", why, f"use '{VERBS[token.role]}'")
        if len(wish.key) != KEY_LENGTH or known or wish.key in state.tokens:
            raise UsageError("the newcomer has no usable key", "it must be a fresh one of its own", "update its beo")
        if len(state.authorized) >= KEYS_MAX:
            raise Conflict(f"{KEYS_MAX} keys are authorized already", "there is a limit", "remove some")
        node = _name(state, token.role, wish.node, now_s)
        events = [ev.Enrolled(token_key, wish.key, node, now_s)]
    who = (token.role, token.user, token.uid, node)
    return events, ms.EnrolledIs(state.cluster, state.head, bulk, *who, now_s, heads_listed(state))


def place(state: State, node: str, bulk: str, settings: str, now_s: float) -> ms.EnrolledIs:
    """Tell a worker whose key is authorized what a newcomer is told, and the settings of its cluster's workers."""
    who = ("worker", "worker", -1, node)
    return ms.EnrolledIs(state.cluster, state.head, bulk, *who, now_s, heads_listed(state), settings)


def _check_token(token: Token, now_s: float) -> None:
    why = ""
    match _state(token, now_s):
        case "revoked":
            why = "it was revoked"
        case "used":
            why = f"it was for {token.uses} machine{'s' * (token.uses != 1)}, and used"
        case "expired":
            why = f"it expired {format_duration(int(now_s - token.expires_s))} ago"
    if why:
        raise Refused(f"token {token.number} is of no use any more", why, "ask the cluster's operator for a new one")


def _name(state: State, role: str, name: str, now_s: float) -> str:
    """What the newcomer's key may speak for by name: "" for all but workers and witnesses."""
    if role == "head":
        check_room(state)
    if role in NAMED and not name:
        raise Refused(f"this token is for {_article(role)}", "", f"use '{VERBS[role]}'")
    if role == "worker":
        return _free_name(state, name)
    if role == "witness":
        _check_word(name, "a witness")
        if WITNESS + name in state.node_keys:
            cure = f"choose another with --name, or 'beo users revoke {WITNESS}{name}' first"
            raise Conflict(f"there is a witness {name} already", "", cure)
        return WITNESS + name
    if name:
        cure = f"use '{VERBS[role]}', or another token"
        raise Refused(f"this token is for {_article(role)}", "not for a worker", cure)
    return ""


def _article(role: str) -> str:
    return f"an {role}" if role == "admin" else f"a {role}"


def _free_name(state: State, name: str) -> str:
    """The name, if a new machine may have it: no other one has it that lives, or may still run something."""
    _check_word(name, "a node")
    if any(machine.name == name for machine in state.machines.values()):
        cure = f"choose another with --name, or 'beo node forget {name}'"
        raise Conflict(f"{name} is the name of a machine that boots from the heads", "", cure)
    node = state.nodes.get(name)
    if node and node.state == "up":
        raise Conflict(f"there is a node {name} already", "it is up", "choose another with --name")
    if node and state.live_parts(name):
        why = "it is silent, and may still run something"
        raise Conflict(f"there is a node {name} already", why, f"choose another with --name, or 'beo gone {name}'")
    return name


def _check_word(name: str, whose: str) -> None:
    try:
        alone = nodeset.expand(name) == [name]
    except BeoError:
        alone = False
    marks = "/" in name or ":" in name  # which divide the names of voters
    if not alone or marks or not name.isascii() or not name.isprintable() or len(name) > NAME_LENGTH_MAX:
        raise UsageError(f"{name[:NAME_LENGTH_MAX]!r} is no name for {whose}", "", "say --name with letters and digits")

"""Who may speak: keys, the tokens that newcomers get one by, and who is barred."""

from __future__ import annotations

from itertools import islice

import msgspec

from beo import events as ev
from beo.headnode.known import Folds, Known
from beo.headnode.model import Authorized, Token

REVOKED_MAX = 10_000  # of the last keys that were revoked: a door must not let one in again
TOKENS_KEEP_S = 7 * 86_400.0  # beyond its end, so that who comes too late is told why
TOKENS_MAX = 10_000  # about 3 MB; beyond, the oldest are forgotten


def _key_authorized(state: Known, event: ev.KeyAuthorized) -> None:
    gids = (event.gid, *(gid for gid in event.groups if gid != event.gid)) if event.gid >= 0 else ()
    state.authorize(event.key, Authorized(event.user, event.role, event.uid, event.node, gids))


def _key_revoked(state: Known, event: ev.KeyRevoked) -> None:
    state.revoke(event.key)
    token = state.tokens.get(event.key)
    if token:
        state.tokens[event.key] = msgspec.structs.replace(token, gone=True)


def _keys_revoked(state: Known, event: ev.KeysRevoked) -> None:
    for key in event.keys:
        if key in state.authorized:
            state.revoke(key)
            state.revoked[key] = event.time_s
    for key in list(islice(state.revoked, max(0, len(state.revoked) - REVOKED_MAX))):
        del state.revoked[key]
    if event.barred:
        state.barred[event.user] = event.time_s


def _user_allowed(state: Known, event: ev.UserAllowed) -> None:
    state.barred.pop(event.user, None)


def _token_made(state: Known, event: ev.TokenMade) -> None:
    if event.number != state.next_token or event.key in state.tokens or event.key in state.authorized:
        return
    state.next_token += 1
    old = [key for key, token in state.tokens.items() if token.expires_s < event.time_s - TOKENS_KEEP_S]
    for key in [*old, *islice(state.tokens, max(0, len(state.tokens) - len(old) + 1 - TOKENS_MAX))]:
        state.tokens.pop(key, None)
    state.tokens[event.key] = Token(
        event.number, event.role, event.user, event.uid, event.uses, event.expires_s, event.maker
    )


def _enrolled(state: Known, event: ev.Enrolled) -> None:
    token = state.tokens.get(event.token)
    if not token or token.gone or len(token.used) >= token.uses or event.key in token.used:
        return
    state.tokens[event.token] = msgspec.structs.replace(token, used=(*token.used, event.key))
    state.authorize(event.key, Authorized(token.user, token.role, token.uid, event.node))


FOLDS: Folds = {
    ev.KeyAuthorized: _key_authorized,
    ev.KeyRevoked: _key_revoked,
    ev.KeysRevoked: _keys_revoked,
    ev.UserAllowed: _user_allowed,
    ev.TokenMade: _token_made,
    ev.Enrolled: _enrolled,
}

"""Whom the cluster knows: users and their keys, and the tokens by which newcomers get one."""

from __future__ import annotations

import msgspec

from beo.messages.cluster import HeadView
from beo.messages.form import Message

# ---- clients ask -----------------------------------------------------------------------------------------------------


class ListUsers(Message, frozen=True):
    """→ UsersAre"""


class RevokeKeys(Message, frozen=True):
    """Take a key, by its first characters, or all keys of a user, who is barred from the doors then. → Done"""

    word: str


class AllowUser(Message, frozen=True):
    """Let a barred user come to the doors again. → Done"""

    user: str


class MakeToken(Message, frozen=True):
    """Take a token, by the public key that belongs to it; the head never learns the token itself. → TokensAre

    uses: so many keys may be authorized by it, within expires_s. Repeating it changes nothing.
    """

    key: str
    role: str  # worker, user, admin, head or witness
    user: str
    uid: int
    uses: int
    expires_s: float


class ListTokens(Message, frozen=True):
    """→ TokensAre"""


class RevokeTokens(Message, frozen=True):
    """End tokens by number; keys that were authorized by them stay. → TokensAre (those that were meant)"""

    numbers: tuple[int, ...]


class Enrol(Message, frozen=True):
    """The one thing that a token's own key can ask for: authorize my `key`. → EnrolledIs

    Repeating it with the same key gives the same answer. node: the name that a worker or a witness wants; "": neither.
    """

    key: str
    node: str = ""
    role: str = ""  # what the newcomer takes the token to be for; "": a user's, or it doesn't say


class AskPlace(Message, frozen=True):
    """What a worker must know whose key was authorized just now, and its cluster's settings. → EnrolledIs"""

    node: str


# ---- the head answers ------------------------------------------------------------------------------------------------


class UserView(msgspec.Struct, frozen=True, array_like=True):
    """One row of `beo users`. role: admin, user or barred. Limits of 0: none."""

    name: str
    role: str
    uid: int
    keys: tuple[str, ...]
    queued: int
    running: int
    slots: int
    running_max: int
    slots_max: int
    queued_max: int


class UsersAre(Message, frozen=True):
    """→ ListUsers."""

    users: tuple[UserView, ...]


class TokenView(msgspec.Struct, frozen=True, array_like=True):
    """One row of `beo token list`. state: open, used, expired or revoked."""

    number: int
    state: str
    role: str
    user: str
    uid: int
    uses: int
    used: int
    left_s: float  # until it expires; 0: it has
    maker: str


class TokensAre(Message, frozen=True):
    """Rows in ascending number."""

    tokens: tuple[TokenView, ...]


class EnrolledIs(Message, frozen=True):
    """The key is authorized, durably. time_s: the head's wall clock."""

    cluster: str
    head: str
    bulk: str
    role: str
    user: str
    uid: int
    node: str
    time_s: float
    heads: tuple[HeadView, ...] = ()  # where all heads are reached
    settings: str = ""  # → AskPlace: beo.toml of a worker


UserRequest = ListUsers | RevokeKeys | AllowUser | MakeToken | ListTokens | RevokeTokens | Enrol | AskPlace
UserAnswer = UsersAre | TokensAre | EnrolledIs

"""Who of the machines that boot from the heads may join. Pure.

Every boot of a machine makes a key of its own in its memory and says the public half of it here, by way of the process
that serves boots. Whether that key may speak for the machine's node is decided by the machine's policy:

    lan      it has fetched its boot script just now, and asks from a port that only root gets: whoever is in that
             network can do the same in another's name
    approve  the operator has said that the words on its console are those in his list
    asset    it knows the asset tag that is on record, and proves it without saying it

Nothing here depends on the machine's own clock. A boot joins once; the key of the one before is void then.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable

from beo import events as ev
from beo import messages as ms
from beo.errors import BeoError, Conflict, Refused, UsageError
from beo.headnode.admit import Z85
from beo.headnode.booting import find, policy_of
from beo.headnode.model import Machine
from beo.headnode.state import State
from beo.headnode.tokens import KEY_LENGTH, KEYS_MAX
from beo.proof import prove, words_of
from beo.settings import BootConfig, Config
from beo.units import format_duration

BOOT_LENGTH_MAX = 64  # of a boot id, which has 36
PRIVILEGED = 1_024  # ports below are root's
ALONE_S = 10.0  # a boot that has asked within this time is alive: another one with its MAC address is told so
NONCE_S = 60.0  # for a proof to be made
WHY_S = 600.0  # how long a refusal is shown beside its machine


class Moments:
    """What is only true now and not worth an entry, by MAC address; a new head begins without, and all ask again."""

    def __init__(self, nonce: Callable[[], str]) -> None:
        """Take where fresh random names come from."""
        self._nonce = nonce
        self._nonces: dict[str, tuple[str, float]] = {}
        self._heard: dict[str, tuple[str, float]] = {}  # the key that waits, and when it last asked
        self._why: dict[str, tuple[str, float]] = {}

    def make_nonce(self, mac: str, now_s: float) -> str:
        """Return something new for a machine to prove its tag by; the one before is void."""
        nonce = self._nonce() + self._nonce()
        self._nonces[mac] = nonce, now_s
        return nonce

    def take_nonce(self, mac: str, nonce: str, now_s: float) -> bool:
        """Whether this was given to that machine just now; it is of no use a second time."""
        known, made_s = self._nonces.pop(mac, ("", 0.0))
        return bool(known) and known == nonce and abs(now_s - made_s) <= NONCE_S

    def hear(self, mac: str, key: str, now_s: float) -> bool:
        """A key waits for its approval; whether another one of that machine has been heard just now."""
        known, heard_s = self._heard.get(mac, (key, now_s))
        if known != key and abs(now_s - heard_s) <= ALONE_S:
            return False
        self._heard[mac] = key, now_s
        return True

    def settle(self, mac: str) -> None:
        """A boot has joined: the next one that asks is not beside it."""
        self._heard.pop(mac, None)
        self._why.pop(mac, None)

    def note(self, mac: str, why: str, now_s: float) -> None:
        """Remember why a machine doesn't join."""
        self._why[mac] = why, now_s

    def why(self, mac: str, now_s: float) -> str:
        """Why a machine has been refused within the last minutes."""
        why, noted_s = self._why.get(mac, ("", 0.0))
        return why if abs(now_s - noted_s) <= WHY_S else ""


def join(
    state: State, config: Config, moments: Moments, wish: ms.JoinMachine, now_s: float
) -> tuple[list[ev.Event], ms.JoinedIs]:
    """Decide on a machine's wish to join. Repeated by the same boot with the same key, it gives the same answer."""
    known = find(state, wish.mac)
    try:
        _check_wish(wish)
        if answer := _answered_before(state, known, wish):
            return [], answer
        _check_fresh(state, known, wish)
        events, answer = _POLICIES[policy_of(known, config.boot)](known, config.boot, moments, wish, now_s)
    except BeoError as error:
        moments.note(known.mac, str(error), now_s)
        raise
    if answer.state == "joined" and (node := state.nodes.get(known.name)) and node.state == "up":
        why = f"the head has not missed {known.name} yet: it does within {format_duration(config.worker.lease_s)}"
        why += ", unless another machine with this MAC address is up"
        moments.note(known.mac, why, now_s)
        return [], ms.JoinedIs("wait", known.name, answer.words, why=why)
    if answer.state == "joined":
        moments.settle(known.mac)
    return events, answer


def _check_wish(wish: ms.JoinMachine) -> None:
    if not 0 < len(wish.boot) <= BOOT_LENGTH_MAX or not wish.boot.isascii() or not wish.boot.isprintable():
        raise UsageError("this boot has no usable id", f"it has 1 to {BOOT_LENGTH_MAX} letters", "update its image")
    if len(wish.key) != KEY_LENGTH or not Z85.issuperset(wish.key):
        raise UsageError("this is no public key", f"it has {KEY_LENGTH} characters of Z85", "update its image")


def _answered_before(state: State, known: Machine, wish: ms.JoinMachine) -> ms.JoinedIs | None:
    if wish.boot not in known.boots:
        return None
    cure = f"if {known.name} is up as it should be, somebody else asks in its name; else start it anew"
    if wish.boot != known.boots[-1]:
        raise Conflict(f"this boot of {known.name} is over", "it has booted again since", cure)
    if wish.key != known.key:
        raise Conflict(f"this boot of {known.name} has joined already", "by another key", cure)
    if wish.key not in state.authorized:
        raise Conflict(f"this boot's key of {known.name} was revoked", "", "start the machine anew")
    return ms.JoinedIs("joined", known.name, words_of(known.key))


def _check_fresh(state: State, known: Machine, wish: ms.JoinMachine) -> None:
    others = (other for other in state.machines.values() if other.mac != known.mac)
    used = wish.key in state.authorized or wish.key in state.tokens or wish.key in state.revoked
    if used or wish.key == known.key or any(wish.key in _keys_of(other) for other in others):
        raise UsageError("this key is in use, or was", "each boot makes one of its own", "start the machine anew")
    if len(state.authorized) >= KEYS_MAX:
        raise Conflict(f"{KEYS_MAX} keys are authorized already", "there is a limit", "remove some")


def _keys_of(known: Machine) -> tuple[str, ...]:
    return known.key, known.approved, known.asked.key if known.asked else ""


_Decided = tuple[list[ev.Event], ms.JoinedIs]


def _grant(known: Machine, wish: ms.JoinMachine, now_s: float) -> _Decided:
    event = ev.MachineJoined(known.mac, wish.boot, wish.key, known.name, now_s)
    return [event], ms.JoinedIs("joined", known.name, words_of(wish.key))


def _by_lan(known: Machine, config: BootConfig, moments: Moments, wish: ms.JoinMachine, now_s: float) -> _Decided:
    host, _, port = wish.peer.rpartition(":")
    if not known.opened_s or abs(now_s - known.opened_s) > config.window_s:
        why = f"it has fetched no boot script within the last {format_duration(config.window_s)}"
        if known.boots and not known.opened_s:
            why = "it has joined since it fetched its boot script, and does so once"
        raise Refused(f"{known.name} isn't expected to join now", why, "start it anew")
    if not port.isdecimal() or not 0 < int(port) < PRIVILEGED:
        cure = "start the join as root there, or 'beo node set --policy approve'"
        raise Refused(f"{known.name} asks from port {port[:8]}", f"only root's, below {PRIVILEGED}, are believed", cure)
    own = known.opened_from or known.address
    if own and host != own:
        why = f"its address is {own}"
        raise Refused(f"{known.name} asks from {host[:40]}", why, "start it anew, so that it takes its own")
    return _grant(known, wish, now_s)


def _by_word(known: Machine, config: BootConfig, moments: Moments, wish: ms.JoinMachine, now_s: float) -> _Decided:
    if wish.key == known.approved:
        return _grant(known, wish, now_s)
    words = words_of(wish.key)
    if not moments.hear(known.mac, wish.key, now_s):
        why = f"another boot with the MAC address {known.mac} asks, too"
        raise Conflict(f"the key {words!r} of {known.name} must wait", why, "turn one of both machines off")
    same = known.asked and known.asked.key == wish.key
    events: list[ev.Event] = [] if same else [ev.MachineAsked(known.mac, wish.boot, wish.key, now_s)]
    return events, ms.JoinedIs("pending", known.name, words)


def _by_tag(known: Machine, config: BootConfig, moments: Moments, wish: ms.JoinMachine, now_s: float) -> _Decided:
    if not known.tag:
        raise Refused(f"no asset tag of {known.name} is on record", "", f"'beo node set {known.name} --tag TAG'")
    if not wish.proof:
        return [], ms.JoinedIs("prove", known.name, words_of(wish.key), moments.make_nonce(known.mac, now_s))
    if not moments.take_nonce(known.mac, wish.nonce, now_s):
        raise Conflict(f"this proof of {known.name} is too old, or was used", "each is good once", "ask again")
    expected = prove(known.tag, wish.nonce, known.mac, wish.boot, wish.key)
    if not hmac.compare_digest(expected.encode(), wish.proof.encode(errors="replace")):
        cure = f"'beo node set {known.name} --tag' with what 'dmidecode -s chassis-asset-tag' says there"
        raise Refused(f"{known.name} doesn't know its asset tag", "the proof is wrong", cure)
    return _grant(known, wish, now_s)


_POLICIES = {"lan": _by_lan, "approve": _by_word, "asset": _by_tag}

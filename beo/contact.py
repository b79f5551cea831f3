"""A client's contact to the head that acts: a request and its answer, over restarts and from head to head.

Every request may be repeated: the head answers a submission or signal that it knows by its key with what it did the
first time. So a request that gets no answer is simply sent again, under the same key, over as many restarts of the head
as the caller's patience covers, and happens once. Of several heads the one is asked that acts (line.py).
"""

from __future__ import annotations

import functools
import os
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress

import msgspec

from beo import config, spec, units, version, wire
from beo import messages as m
from beo.errors import BeoError, Internal, NoHead, Refused, UsageError, from_dict, reason
from beo.table import escape

TYPE_CHECKING = False  # what typing.TYPE_CHECKING is
if TYPE_CHECKING:
    from typing import Self, TypeVar

    from beo.line import Line

    Answer = TypeVar("Answer")
    Channel = wire.Connection | Line

PATIENCE_S = 2.0  # a killed head is back in less; longer, and a person wonders whether anything happens
RESEND_S = 1.0  # an answer that is overdue by so much was lost with the head that owed it
LEARN_PATIENCE_S = 0.5  # for the list of heads, which nobody waits for
CONNECT_POLL_S = 0.25  # how often an absent head's connection is looked at
NOBODY_S = 0.05  # before a head is asked again that doesn't act, and knows of nobody who does
LEARN_S = 600.0  # how old a user's own list of heads may get


class Unanswered(NoHead):
    """A request was sent and no answer came: what became of it is not known."""


def new_key() -> str:
    """Return a fresh idempotency key: the time, so that the head can tell its age, and 96 random bits."""
    return spec.submission_key(time.time(), os.urandom(12).hex())


def tell(text: str) -> None:
    """Say one line on standard error, as beo."""
    try:
        print(f"beo: {escape(text)}", file=sys.stderr, flush=True)
    except OSError:
        pass  # nobody can hear it, which must not change what is done or how it ends


# One for all connections of the process: each context has an I/O thread of its own.
_context = functools.cache(wire.new_context)


# Connections that were made before they were asked for, with whom they are to: address, the head's key, our secret.
_ahead: list[tuple[tuple[str, str, str], wire.Connection]] = []


def open_ahead(home: config.Home, control: int, bulk: int = 0) -> None:
    """Have so many connections to the control and the bulk plane of a cluster for those who will want one soon.

    They are made while this process goes on with something else. Whoever takes one has read the cluster's address and
    keys anew, and takes none that was made with others. Raises what reading them raises.
    """
    cluster = home.cluster()
    _, secret = _identity(home)
    if not secret:
        return  # a user's first word is at the door
    for addresses, count in ((cluster.heads, control), (cluster.bulk, bulk)):
        for address in addresses:
            whom = (address, cluster.key, secret)
            missing = count - sum(known == whom for known, _ in _ahead)
            _ahead.extend((whom, wire.Connection(*whom, _context())) for _ in range(missing))


def _identity(home: config.Home) -> tuple[str, str]:
    """Where our secret key is, and the key: the cluster's own for who may read it, else one of this user, if any."""
    if home.is_ours:
        return str(home.keys / "admin.secret"), home.secret("admin")
    from beo import keyring

    path = keyring.path_of(home.cluster().cluster)
    return path, keyring.read(path)


def close_ahead() -> None:
    """Close those that nobody wanted."""
    for _, connection in _ahead:
        connection.close()
    _ahead.clear()


class Contact:
    """A connection to the cluster in `home` (by default `BEO_DIR`), made when first needed. For one thread at a time.

    Every method raises `BeoError`: `NoHead` where nobody answers, `Refused` for a foreign key, or what the head says.
    """

    def __init__(self, home: config.Home | None = None, secret: str = "") -> None:
        """Take the cluster's folder; nothing is read yet. secret: a key to be known by, other than this user's."""
        self.home = home or config.home()
        self._secret = secret
        self._connection: Channel | None = None
        self._is_due = False  # cluster.json is old
        self._known: config.ClusterFile | None = None  # what it should say, once a head has told
        self._requests = 0
        self._introduced = False  # at the door, by this object

    def __enter__(self) -> Self:
        """Return the cluster, to be closed at the end of the block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    def close(self) -> None:
        """Close the connection; the next request opens it anew."""
        if self._connection:
            self._connection.close()
            self._connection = None

    def request(self, message: object, patience_s: float | None = PATIENCE_S, wait_s: float = 0.0) -> object:
        """Send one message of `ClientRequest` and return its answer; raises the error that a `Failed` carries.

        The message is sent again, as it is, until it is answered or the head was silent for `patience_s` (None: for
        ever, with a line on standard error). `wait_s` is how long the head may keep a long poll.
        """
        connection = self._connected()
        self._requests += 1
        try:
            body = m.encode(message)
        except UnicodeEncodeError as error:  # what the shell hands over of a word that is no UTF-8 has surrogates
            raise UsageError(f"{error.object[:80]!r} is not UTF-8", "beo keeps text only", "write it as text") from None
        began_s = time.monotonic()
        sent, told = 0, False
        waits = 0  # answers that may have taken wait_s
        while True:
            silent_s = time.monotonic() - began_s - waits * wait_s
            left_s = PATIENCE_S if patience_s is None else patience_s - silent_s
            if patience_s is None and silent_s >= PATIENCE_S and not told:
                tell(f"no head answers at {connection.address}: waiting")
                told = True
            if left_s <= 0 and patience_s is not None:
                if connection.refusing:
                    raise self._refused(connection.refusing)
                raise self._unanswered(connection.address, patience_s, sent > 0)
            connection.wait_s = wait_s
            if connection.send(self._requests, body, min(CONNECT_POLL_S, left_s)):
                sent += 1
                answer = self._receive(connection, wait_s + min(RESEND_S, left_s))
                if isinstance(answer, m.Elsewhere):
                    connection = self._widen(connection, answer.head)
                    continue
                waits += 1
                if answer is not None:
                    if told:
                        tell("a head answers again")
                    self._learn(connection)
                    return answer
            if connection.refused:
                if not self._introduce():
                    raise self._refused(connection.refusing)
                connection = self._connected()

    def _connected(self) -> Channel:
        if not self._connection:
            heads = (self._known or self.home.cluster()).heads
            self._is_due = self.home.is_due(LEARN_S)
            self._connection = self._connect(heads[0]) if len(heads) == 1 else self._line(heads)
        return self._connection

    def _line(self, addresses: Sequence[str], names: Mapping[str, str] | None = None) -> Line:
        from beo.line import Line  # here: with one head, nobody needs it

        return Line(addresses, self._connect, names)

    def _widen(self, connection: Channel, head: str) -> Channel:
        """The one head that we know doesn't act: go on with the one that it names, too."""
        if not config.is_address(head) or head == connection.address:
            time.sleep(NOBODY_S)
            return connection
        connection.close()
        self._connection = self._line((head, connection.address))
        self._is_due = True
        return self._connection

    def _learn(self, connection: Channel) -> None:
        """Ask which heads there are, if there is news of it or it is time to."""
        if self._is_due or getattr(connection, "has_learned", False):
            self._is_due = connection.has_learned = False  # type: ignore[union-attr]
            self.learn_heads()

    def learn_heads(self) -> None:
        """Ask which heads there are now, and write it down where that may be done; no answer is no harm."""
        with suppress(BeoError):
            self.info(LEARN_PATIENCE_S)

    def _connect(self, address: str) -> wire.Connection:
        whom = (address, self.home.cluster().key, self.secret())
        for number, (known, connection) in enumerate(_ahead):
            if known == whom and not connection.refused:
                del _ahead[number]
                return connection
        return wire.Connection(*whom, _context())

    def secret(self) -> str:
        """Our secret key; a user who has none gets one here, by knocking at the door."""
        if self._secret:
            return self._secret
        path, secret = _identity(self.home)
        if not secret:
            from beo import door, keyring

            door.find(str(self.home.path))  # first: no key is made for a cluster that lets nobody in
            secret = keyring.keep(path, wire.new_keypair()[1])
            door.knock(str(self.home.path), wire.public_of(secret))
            self._introduced = True
        return secret

    def _introduce(self) -> bool:
        """Say the key of this user at the cluster's door, once; whether that may have helped."""
        if self._introduced or self._secret or self.home.is_ours:
            return False
        self._introduced = True
        from beo import door

        door.knock(str(self.home.path), wire.public_of(self.secret()))
        self.close()
        return True

    def bulk(self) -> Channel:
        """Return a new connection to the bulk plane of the head that acts, where output and input go."""
        cluster = self._known or self.home.cluster()
        if not cluster.bulk:
            return self._connect(self.info().bulk)
        if len(cluster.bulk) == 1:
            return self._connect(cluster.bulk[0])
        return self._line(cluster.bulk, dict(zip(cluster.heads, cluster.bulk, strict=False)))

    def _receive(self, connection: Channel, timeout_s: float) -> object | None:
        deadline_s = time.monotonic() + timeout_s
        while received := connection.receive(max(0.0, deadline_s - time.monotonic())):
            request, body = received
            if not request and not body:
                raise version.mismatch("the head", connection.stranger)
            if request != self._requests:
                continue  # the late answer to a request that was given up
            try:
                answer: object = m.to_client.decode(body)
            except msgspec.DecodeError as error:
                why = reason(error)
                raise Internal("the head's answer makes no sense", why, "install the same beo on both") from None
            if isinstance(answer, m.Failed):
                raise from_dict(answer.error)
            return answer
        return None

    def _refused(self, address: str) -> Refused:
        return Refused(
            f"the head at {address} does not know this key",
            _identity(self.home)[0],
            "set BEO_DIR to the cluster that you mean, or ask its operator for a key",
        )

    def _unanswered(self, address: str, patience_s: float, sent: bool) -> NoHead:
        kind = Unanswered if sent else NoHead
        cure = "start one with 'beo up', or set BEO_DIR to the cluster that you mean"
        return kind(f"no head answers at {address}", f"tried for {units.format_duration(patience_s)}", cure)

    def _ask(
        self, message: object, kind: type[Answer], patience_s: float | None = PATIENCE_S, wait_s: float = 0.0
    ) -> Answer:
        answer = self.request(message, patience_s, wait_s)
        if isinstance(answer, kind):
            return answer
        raise Internal(f"the head answered with {type(answer).__name__}", f"asked for {kind.__name__}")

    def info(self, patience_s: float | None = PATIENCE_S) -> m.InfoIs:
        """Return which cluster, head and epoch answers, and as whom it knows us."""
        answer = self._ask(m.Info(), m.InfoIs, patience_s)
        control, bulk = tuple(head.control for head in answer.heads), tuple(head.bulk for head in answer.heads)
        self._known = self.home.learn(self._known or self.home.cluster(), control, bulk)
        return answer

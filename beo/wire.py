"""The wire: ZeroMQ with CURVE. The only file that imports zmq.

Every connection is encrypted and authenticated by key; a key that the server doesn't know gets no answer at all. Each
socket belongs to one thread, which is its only reader and writer. Nothing here waits for an absent peer: what can't be
sent now is dropped, and the protocol above repeats what matters.

A `Server` has a context of its own, since ZeroMQ asks for the verdict on a key (ZAP, RFC 27) once per context and each
server answers in its own loop, without a further thread.
"""

from __future__ import annotations

import os
import struct
import time
import weakref
from collections.abc import Callable

import zmq
from zmq.utils import z85

from beo.errors import BeoError, Internal
from beo.messages import MESSAGE_SIZE_MAX_BYTES
from beo.version import GREETING, is_ours, is_understood

POLLIN = zmq.POLLIN
Poller = zmq.Poller

# Messages queued for one peer before more are dropped: it isn't reading then, and what it missed is repeated.
QUEUE_LENGTH_MAX = 10_000
RECEIVE_BATCH = 256  # messages taken in one go, so that timers are looked at in between
HEARTBEAT_IVL_MS = 1_000  # a vanished host is noticed by the socket after about three of these
HEARTBEAT_TIMEOUT_MS = 3_000
RECONNECT_IVL_MS = 20
RECONNECT_IVL_MAX_MS = 250
HANDSHAKE_IVL_MS = 5_000
REFUSED_RETRY_S = 0.25  # who is refused may be known a moment later
MISTAKEN_AFTER = 3  # broken handshakes in a row: a head that just ends breaks off one
STRANGERS_MAX = 64  # greetings of other protocols that are remembered, so that each is told of once
CURE_KEY = "restore cluster.json and keys/ of the cluster's folder"

_request = struct.Struct(">Q")
# Flags as plain numbers: each `|` and `&` of pyzmq's own enums costs more than what it is for.
_NOW = int(zmq.NOBLOCK)
_NOW_MORE = int(zmq.NOBLOCK) | int(zmq.SNDMORE)
_EVENTS = int(zmq.EVENTS)
_READABLE = int(zmq.POLLIN)


def new_keypair() -> tuple[str, str]:
    """Return a fresh CURVE pair (public, secret), 40 characters of Z85 each."""
    public, secret = zmq.curve_keypair()
    return public.decode(), secret.decode()


def public_of(secret: str) -> str:
    """Return the public key of a secret one; raises ValueError for a text that is no key."""
    try:
        return zmq.curve_public(secret.encode()).decode()
    except (zmq.ZMQError, ValueError, AssertionError):
        raise ValueError("not a CURVE secret key (40 characters of Z85)") from None


def public_of_bytes(secret: bytes) -> str:
    """Return the public key of a secret one of 32 bytes."""
    return public_of(z85.encode(secret).decode())


def key_of_bytes(key: bytes) -> str:
    """Return a key of 32 bytes as it is written elsewhere: 40 characters of Z85."""
    return z85.encode(key).decode()


def bytes_of_key(key: str) -> bytes:
    """Return a key as its 32 bytes."""
    return bytes(z85.decode(key.encode()))


def _tune(socket: zmq.Socket[bytes], queue_length: int = QUEUE_LENGTH_MAX) -> None:
    socket.linger = 0
    socket.sndhwm = queue_length
    socket.rcvhwm = queue_length
    socket.maxmsgsize = MESSAGE_SIZE_MAX_BYTES
    socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_IVL_MS)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT_MS)
    socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_IVL_MS)


def _put(socket: zmq.Socket[bytes], *frames: bytes) -> None:
    """Send one message now; raises zmq.Again where it can't be queued. A third of what send_multipart costs."""
    for frame in frames[:-1]:
        socket.send(frame, _NOW_MORE)
    socket.send(frames[-1], _NOW)


def _readable(socket: zmq.Socket[bytes]) -> bool:
    """Whether there is a message: cheaper to ask than to be told by an exception."""
    return bool(int(socket.getsockopt(_EVENTS)) & _READABLE)


class Waker:
    """Wakes a poll loop from another thread: an eventfd."""

    def __init__(self) -> None:
        """Open it."""
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def fileno(self) -> int:
        """Return the descriptor to poll for reading."""
        return self._fd

    def wake(self) -> None:
        """Make the loop's poll return. From any thread."""
        os.eventfd_write(self._fd, 1)

    def clear(self) -> None:
        """Forget all wake-ups so far."""
        try:
            os.eventfd_read(self._fd)
        except BlockingIOError:
            pass

    def close(self) -> None:
        """Close it."""
        os.close(self._fd)


class Server:
    """A bound ROUTER. `authorize(public key)` says whether a key may connect; it is asked in this socket's thread."""

    def __init__(
        self, address: str, secret: str, authorize: Callable[[str], bool], queue_length: int = QUEUE_LENGTH_MAX
    ) -> None:
        """Bind `address` ("host:port"; port 0 takes a free one); raises OSError where it is taken.

        queue_length: messages kept for a peer that doesn't read; the more, the larger the memory that it can cost.
        """
        self._authorize = authorize
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._zap = self._context.socket(zmq.REP)
        self._zap.linger = 0
        self._zap.bind("inproc://zeromq.zap.01")
        self._router = self._context.socket(zmq.ROUTER)
        _tune(self._router, queue_length)
        self._router.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._router.curve_server = True
        self._router.curve_secretkey = secret.encode()
        self._router.zap_domain = b"beo"
        host, _, port = address.rpartition(":")
        try:
            self._router.bind(f"tcp://{host}:{'*' if port == '0' else port}")
        except zmq.ZMQError as error:
            self.close()
            raise OSError(error.errno, f"can't listen on {address}: {error.strerror}") from None
        self._strangers: set[bytes] = set()
        self._news: list[bytes] = []
        endpoint = self._router.getsockopt(zmq.LAST_ENDPOINT)
        assert isinstance(endpoint, bytes)
        self.address = endpoint.decode().removeprefix("tcp://").rstrip("\0")

    def register(self, poller: zmq.Poller) -> None:
        """Add this server's sockets to a loop; call `receive` after each poll."""
        poller.register(self._zap, zmq.POLLIN)
        poller.register(self._router, zmq.POLLIN)

    def receive(self) -> list[tuple[bytes, str, int, bytes]]:
        """Return what has come: (peer, its public key, request id, body). Frames that aren't ours are dropped."""
        self.judge()
        received = []
        for _ in range(RECEIVE_BATCH):
            if not _readable(self._router):
                break
            first = frame = self._router.recv(_NOW, copy=False)
            rest: list[bytes] = []
            while frame.more:
                frame = self._router.recv(_NOW, copy=False)
                rest.append(frame.bytes)
            peer = first.bytes
            if len(rest) == 3 and is_understood(rest[0]) and len(rest[1]) == 8:
                key = first.get("User-Id")
                received.append((peer, str(key), _request.unpack(rest[1])[0], rest[2]))
            elif rest and is_ours(rest[0]) and not is_understood(rest[0]):
                self._send(peer, GREETING, rest[1] if len(rest) > 1 else bytes(8), b"")
                if rest[0] not in self._strangers and len(self._strangers) < STRANGERS_MAX:
                    self._strangers.add(rest[0])
                    self._news.append(rest[0])
        return received

    def strangers(self) -> list[bytes]:
        """Return the greetings of peers of other protocols that have come since the last call; each comes once."""
        news, self._news = self._news, []
        return news

    def judge(self) -> None:
        """Say which keys may connect, and read nothing else."""
        while _readable(self._zap):
            version, request, _domain, _address, _identity, mechanism, *credentials = self._zap.recv_multipart(_NOW)
            key = z85.encode(credentials[0]).decode() if mechanism == b"CURVE" and credentials else ""
            known = bool(key) and self._authorize(key)
            verdict = [b"200", b"OK", key.encode(), b""] if known else [b"400", b"unknown key", b"", b""]
            self._zap.send_multipart([version, request, *verdict])

    def _send(self, *frames: bytes) -> bool:
        try:
            _put(self._router, *frames)
        except zmq.ZMQError as error:
            if error.errno in (zmq.EHOSTUNREACH, zmq.EAGAIN):
                return False
            raise
        return True

    def send(self, peer: bytes, request: int, body: bytes) -> bool:
        """Send, or say False where the peer has gone or doesn't read."""
        return self._send(peer, GREETING, _request.pack(request), body)

    def close(self) -> None:
        """Close at once; what is still queued is dropped."""
        self._context.destroy(linger=0)


class Connection:
    """A DEALER to one server. Reconnects by itself for ever, also where it was refused.

    `refused` tells that the server doesn't know our key, `mistaken` that who is there can't be the server: it doesn't
    have its key. `stranger` is the greeting of a server of another protocol. `renewed` tells that the connection was
    made anew since the last `send`: whoever asked before it waits in vain; `broken` tells the same as soon as it has
    ended.
    """

    # For a line to several heads (line.py), which stands in for a connection.
    next_at = float("inf")  # when `receive` must be called though there is nothing to read
    wait_s = 0.0  # how long the server may keep what is asked

    def __init__(self, address: str, server_key: str, secret: str, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        """Start to connect to "host:port"; returns at once. One context (`new_context`) per process is enough."""
        self.address = address
        self.server_key = server_key
        self.stranger = b""
        self._socket = context.socket(zmq.DEALER)
        _tune(self._socket)
        self._socket.setsockopt(zmq.IMMEDIATE, 1)  # nothing queues for an absent peer, to be delivered as stale later
        self._socket.setsockopt(zmq.RECONNECT_IVL, RECONNECT_IVL_MS)
        self._socket.setsockopt(zmq.RECONNECT_IVL_MAX, RECONNECT_IVL_MAX_MS)
        try:
            self._socket.curve_serverkey = server_key.encode()
            self._socket.curve_secretkey = secret.encode()
            self._socket.curve_publickey = public_of(secret).encode()
        except (zmq.ZMQError, ValueError):
            self._socket.close(linger=0)
            raise BeoError("a key is no key", "it must be 40 characters of Z85", CURE_KEY) from None
        self._monitor = self._socket.get_monitor_socket(
            zmq.EVENT_HANDSHAKE_FAILED_AUTH
            | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
            | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
            | zmq.EVENT_HANDSHAKE_SUCCEEDED
            | zmq.EVENT_DISCONNECTED
        )
        # Also where nobody calls `close`: collected one by one, the monitor might be gone before what tells it of ends.
        self._close = weakref.finalize(self, _close, self._socket, self._monitor, os.getpid())
        self._close.atexit = False
        self._refused = False
        self._cut_short = 0  # handshakes that the other side broke off, in a row
        self._retry_s = 0.0  # when to connect again: after a refusal the socket would not
        self._lives = self._asked_in_life = 0  # successful handshakes; how many there had been at the last send
        self._ends = self._ends_when_asked = 0  # the same for ends of connections
        try:
            self._socket.connect(f"tcp://{address}")
        except zmq.ZMQError as error:
            self.close()
            raise BeoError(f"can't connect to {address}", (error.strerror or "").lower(), CURE_KEY) from None

    def register(self, poller: zmq.Poller) -> None:
        """Add to a loop; call `receive` after each poll."""
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._monitor, zmq.POLLIN)

    def filenos(self) -> list[int]:
        """Return the descriptors to poll for reading instead; whoever does must call `receive` until it gives None."""
        return [int(self._socket.getsockopt(zmq.FD)), int(self._monitor.getsockopt(zmq.FD))]

    def unregister(self, poller: zmq.Poller) -> None:
        """Take out of a loop, before close."""
        poller.unregister(self._socket)
        poller.unregister(self._monitor)

    @property
    def refused(self) -> bool:
        """Whether the last handshake failed: our key is unknown there, or the server's key is another."""
        self._look()
        return self._refused

    @property
    def renewed(self) -> bool:
        """Whether what was sent last went over a connection that is no more, and there is a new one."""
        self._look()
        return self._lives > self._asked_in_life

    @property
    def broken(self) -> bool:
        """Whether the connection over which something was sent last has ended."""
        self._look()
        return self._ends > self._ends_when_asked

    @property
    def refusing(self) -> str:
        """Where our key is unknown: this address, or nothing."""
        return self.address if self.refused else ""

    @property
    def mistaken(self) -> bool:
        """Whether whoever listens there breaks off every handshake, as a server with another key does."""
        self._look()
        return self._cut_short >= MISTAKEN_AFTER

    def _look(self) -> None:
        while _readable(self._monitor):
            event = struct.unpack("=hi", self._monitor.recv_multipart()[0])[0]
            if event == zmq.EVENT_DISCONNECTED:
                self._ends += 1
                continue
            if event == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL:
                self._cut_short += 1
                continue
            self._cut_short = 0
            self._refused = event != zmq.EVENT_HANDSHAKE_SUCCEEDED
            self._lives += not self._refused
            if self._refused:
                self._retry_s = time.monotonic() + REFUSED_RETRY_S
        if self._retry_s and time.monotonic() >= self._retry_s:
            self._retry_s = 0.0
            self._socket.disconnect(f"tcp://{self.address}")
            self._socket.connect(f"tcp://{self.address}")

    def send(self, request: int, body: bytes, timeout_s: float = 0.0) -> bool:
        """Send, waiting at most timeout_s for the server to be there; False: nothing was sent."""
        if len(body) > MESSAGE_SIZE_MAX_BYTES:
            raise Internal(f"a message of {len(body)} bytes", f"the limit is {MESSAGE_SIZE_MAX_BYTES}", "send less")
        if timeout_s > 0 and not self._socket.poll(int(timeout_s * 1000) + 1, zmq.POLLOUT):
            return False
        try:
            _put(self._socket, GREETING, _request.pack(request), body)
        except zmq.Again:
            return False
        # As of the last look, on which the caller could act: an end or a beginning since then is still to be told of.
        self._asked_in_life = max(self._lives, 1)  # the first handshake may not have been told of yet
        self._ends_when_asked = self._ends
        return True

    def receive(self, timeout_s: float = 0.0) -> tuple[int, bytes] | None:
        """Return (request id, body) of one message, or None after timeout_s, or as soon as the connection is `renewed`.

        An empty body: the server speaks another protocol, and `stranger` says which.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            if not _readable(self._socket):
                left_s = deadline - time.monotonic()
                if self.renewed or left_s <= 0:
                    return None
                zmq.select([self._socket, self._monitor], [], [], left_s)
                continue
            try:
                frames = self._socket.recv_multipart(_NOW)
            except zmq.Again:  # the connection ended just now, and what had come by it went with it
                continue
            if len(frames) == 3 and is_understood(frames[0]) and len(frames[1]) == 8:
                return _request.unpack(frames[1])[0], frames[2]
            if frames and is_ours(frames[0]) and not is_understood(frames[0]):
                self.stranger = frames[0]
                return 0, b""

    def close(self) -> None:
        """Close at once."""
        self._close()


def _close(connection: zmq.Socket[bytes], monitor: zmq.Socket[bytes], pid: int) -> None:
    """Close both so that nothing is told any more once nobody listens: who tells it would wait for ever."""
    if os.getpid() == pid and not connection.closed:  # what a fork has of them is its parent's
        connection.disable_monitor()
        connection.close(linger=0)
        monitor.close(linger=0)


def new_context() -> zmq.Context[zmq.Socket[bytes]]:
    """Return a context for connections."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    # What becomes of a connection is told over a queue that a client who asks nothing doesn't empty. Were it bounded,
    # as it is by default, the thread that fills it would wait there for ever, and with it all connections it serves.
    context.setsockopt(zmq.RCVHWM, 0)
    return context

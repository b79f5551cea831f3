"""The wire: only known keys are heard, nothing foreign does harm, and an absent peer holds nobody up."""

import gc
import random
import socket
import threading
import time
from collections.abc import Iterator

import pytest
import zmq

from beo import __version__, version, wire
from beo import messages as ms
from beo.version import GREETING

Socket = zmq.Socket[bytes]
Context = zmq.Context[Socket]


class Echo:
    """A server in a thread that sends back whatever it hears."""

    def __init__(self, *known: str) -> None:
        self.public, secret = wire.new_keypair()
        self.server = wire.Server("127.0.0.1:0", secret, lambda key: key in known)
        self.heard: list[tuple[str, bytes]] = []
        self._stop = False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        poller = wire.Poller()
        self.server.register(poller)
        while not self._stop:
            poller.poll(20)
            for peer, key, request, body in self.server.receive():
                self.heard.append((key, body))
                self.server.send(peer, request, body)
        self.server.close()

    def close(self) -> None:
        self._stop = True
        self._thread.join()


@pytest.fixture
def context() -> Iterator[Context]:
    context = wire.new_context()
    yield context
    context.destroy(linger=0)


@pytest.fixture
def pair() -> tuple[str, str]:
    return wire.new_keypair()


@pytest.fixture
def echo(pair: tuple[str, str]) -> Iterator[Echo]:
    echo = Echo(pair[0])
    yield echo
    echo.close()


def _connect(echo: Echo, secret: str, context: Context) -> wire.Connection:
    return wire.Connection(echo.server.address, echo.public, secret, context)


def test_a_known_key_is_answered_under_its_request_id(echo: Echo, pair: tuple[str, str], context: Context) -> None:
    connection = _connect(echo, pair[1], context)
    assert connection.send(7, b"hello", 5.0)
    assert connection.receive(5.0) == (7, b"hello")
    assert echo.heard == [(pair[0], b"hello")]
    assert not connection.refused


def test_a_foreign_key_gets_nothing_and_learns_why(echo: Echo, context: Context) -> None:
    connection = _connect(echo, wire.new_keypair()[1], context)
    deadline = time.monotonic() + 5
    while not connection.refused and time.monotonic() < deadline:
        connection.send(1, b"let me in", 0.05)
    assert connection.refused
    assert connection.receive(0.05) is None
    assert echo.heard == []


def test_a_client_that_expects_another_server_says_nothing_to_this_one(
    echo: Echo, pair: tuple[str, str], context: Context
) -> None:
    stranger = wire.new_keypair()[0]
    connection = wire.Connection(echo.server.address, stranger, pair[1], context)
    connection.send(1, b"secret", 0.3)
    assert connection.receive(0.3) is None
    assert echo.heard == []


def test_an_absent_server_holds_nobody_up(pair: tuple[str, str], context: Context) -> None:
    echo = Echo(pair[0])
    echo.close()
    connection = _connect(echo, pair[1], context)
    assert not connection.send(1, b"anyone?", 0.1)
    assert connection.receive(0.0) is None


def test_a_server_that_comes_back_is_found_again(pair: tuple[str, str], context: Context) -> None:
    public, secret = wire.new_keypair()
    first = wire.Server("127.0.0.1:0", secret, lambda key: True)
    connection = wire.Connection(first.address, public, pair[1], context)
    first.close()
    second = wire.Server(first.address, secret, lambda key: True)
    poller = wire.Poller()
    second.register(poller)
    received: list[tuple[bytes, str, int, bytes]] = []
    deadline = time.monotonic() + 10
    while not received and time.monotonic() < deadline:
        connection.send(3, b"still here")
        poller.poll(20)
        received = second.receive()
    assert received[0][2:] == (3, b"still here")
    second.close()


def test_a_port_that_is_taken_is_an_error_that_names_it(pair: tuple[str, str]) -> None:
    first = wire.Server("127.0.0.1:0", pair[1], lambda key: True)
    with pytest.raises(OSError, match=first.address):
        wire.Server(first.address, pair[1], lambda key: True)
    first.close()


def _raw(echo: Echo, pair: tuple[str, str], context: Context) -> Socket:
    """A socket with a good key that keeps to none of our rules."""
    socket: Socket = context.socket(zmq.DEALER)
    socket.linger = 0
    socket.curve_serverkey = echo.public.encode()
    socket.curve_publickey, socket.curve_secretkey = (key.encode() for key in pair)
    socket.connect(f"tcp://{echo.server.address}")
    return socket


def test_frames_of_another_shape_are_dropped_and_the_next_message_is_served(
    echo: Echo, pair: tuple[str, str], context: Context
) -> None:
    socket = _raw(echo, pair, context)
    chance = random.Random(20261122)
    for _ in range(500):
        frames = [chance.randbytes(chance.choice((0, 1, 4, 8, 9, 300))) for _ in range(chance.randint(1, 6))]
        socket.send_multipart(frames)
    socket.send_multipart([GREETING, (9).to_bytes(8, "big"), b"a good one"])
    assert socket.poll(5000)
    assert socket.recv_multipart() == [GREETING, (9).to_bytes(8, "big"), b"a good one"]
    assert echo.heard == [(pair[0], b"a good one")]


def test_another_version_of_the_protocol_is_told_so(echo: Echo, pair: tuple[str, str], context: Context) -> None:
    socket = _raw(echo, pair, context)
    socket.send_multipart([b"beo999", bytes(8), b"from the future"])
    assert socket.poll(5000)
    assert socket.recv_multipart() == [GREETING, bytes(8), b""]
    assert echo.heard == []


def test_a_message_beyond_the_limit_costs_its_sender_the_connection_and_nobody_else_anything(
    echo: Echo, pair: tuple[str, str], context: Context
) -> None:
    socket = _raw(echo, pair, context)
    socket.send_multipart([GREETING, bytes(8), bytes(ms.MESSAGE_SIZE_MAX_BYTES + 1)])
    connection = _connect(echo, pair[1], context)
    assert connection.send(2, b"me too", 5.0)
    assert connection.receive(5.0) == (2, b"me too")
    assert [body for _, body in echo.heard] == [b"me too"]


def test_a_text_that_is_no_key_is_refused() -> None:
    for text in ("", "short", "x" * 41, "é" * 40):
        with pytest.raises(ValueError, match="not a CURVE secret key"):
            wire.public_of(text)


def test_who_waits_for_an_answer_of_a_server_that_died_learns_of_the_next_one_at_once(
    pair: tuple[str, str], context: Context
) -> None:
    public, secret = wire.new_keypair()
    first = wire.Server("127.0.0.1:0", secret, lambda key: True)
    poller = wire.Poller()
    first.register(poller)
    connection = wire.Connection(first.address, public, pair[1], context)
    heard = threading.Event()

    def serve_and_die() -> None:
        while not first.receive():
            poller.poll(20)
        heard.set()
        first.close()

    thread = threading.Thread(target=serve_and_die)
    thread.start()
    assert connection.send(1, b"a question that gets no answer", 5.0)
    assert heard.wait(5)
    thread.join()
    echo = wire.Server(first.address, secret, lambda key: True)
    again = wire.Poller()
    echo.register(again)
    judge = threading.Thread(target=lambda: [(again.poll(50), echo.receive()) for _ in range(40)])
    judge.start()
    assert connection.receive(600.0) is None  # the test's own time limit is shorter
    assert connection.renewed
    judge.join()
    assert connection.send(1, b"again", 5.0)
    assert not connection.renewed
    echo.close()


def test_who_was_refused_is_heard_as_soon_as_its_key_is_known(context: Context, pair: tuple[str, str]) -> None:
    known: list[str] = []
    echo = Echo()
    echo.server._authorize = known.__contains__
    try:
        connection = _connect(echo, pair[1], context)
        deadline = time.monotonic() + 10
        while not connection.refused and time.monotonic() < deadline:
            connection.send(1, b"let me in", 0.05)
        assert connection.refused
        known.append(pair[0])
        while not echo.heard and time.monotonic() < deadline:
            connection.send(2, b"and now?", 0.05)
            assert connection.receive(0.0) in (None, (2, b"and now?"))
        assert echo.heard[0] == (pair[0], b"and now?") and not connection.refused
    finally:
        echo.close()


def test_a_server_with_another_key_than_expected_is_told_apart_from_none(
    echo: Echo, pair: tuple[str, str], context: Context
) -> None:
    connection = wire.Connection(echo.server.address, wire.new_keypair()[0], pair[1], context)
    deadline = time.monotonic() + 10
    while not connection.mistaken and time.monotonic() < deadline:
        connection.send(1, b"secret", 0.05)
    assert connection.mistaken and not connection.refused
    assert echo.heard == []
    absent = wire.Connection("127.0.0.1:1", echo.public, pair[1], context)
    absent.send(1, b"anyone?", 0.5)
    assert not absent.mistaken


def test_a_connection_that_nobody_looks_at_and_that_is_broken_off_a_thousand_times_holds_up_no_other(
    echo: Echo, pair: tuple[str, str], context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        monkeypatch.setattr(wire, "RECONNECT_IVL_MS", 1)
        idle = wire.Connection(f"127.0.0.1:{stranger.getsockname()[1]}", echo.public, pair[1], context)
        stranger.settimeout(10)
        for _ in range(2_500):  # libzmq's queues hold 1,000 at each end
            stranger.accept()[0].close()
    other = _connect(echo, pair[1], context)
    assert other.send(1, b"still there?", 5.0) and other.receive(5.0) == (1, b"still there?")
    assert idle.mistaken


@pytest.mark.slow
def test_connections_that_are_forgotten_instead_of_closed_hold_up_no_other(
    echo: Echo, pair: tuple[str, str], context: Context
) -> None:
    for step in range(60):  # some end just when they are forgotten
        made = [_connect(echo, pair[1], context) for _ in range(8)]
        time.sleep(0.001 * (step % 15))
        del made
        gc.collect()
    other = _connect(echo, pair[1], context)
    assert other.send(1, b"still there?", 5.0) and other.receive(5.0) == (1, b"still there?")


@pytest.mark.parametrize(
    ("greeting", "understood"),
    [
        (b"beo/1/1/0.1.99", True),
        (b"beo/1/7/3.0", True),
        (b"beo/2/1/0.1.0", False),
        (b"beo/11/1/0.1.0", False),
        (b"beo1", False),
        (b"beo", False),
    ],
)
def test_patch_versions_understand_each_other_and_other_protocols_are_named_once(
    greeting: bytes, understood: bool, pair: tuple[str, str], context: Context
) -> None:
    public, secret = wire.new_keypair()
    server = wire.Server("127.0.0.1:0", secret, lambda key: True)
    socket: Socket = context.socket(zmq.DEALER)
    socket.linger = 0
    socket.curve_serverkey = public.encode()
    socket.curve_publickey, socket.curve_secretkey = (key.encode() for key in pair)
    socket.connect(f"tcp://{server.address}")
    poller = wire.Poller()
    server.register(poller)
    for _ in range(3):
        socket.send_multipart([greeting, bytes(8), b"body"])
    heard: list[bytes] = []
    told: list[bytes] = []
    deadline = time.monotonic() + 5
    while len(heard) + len(told) < 3 and time.monotonic() < deadline:
        poller.poll(20)
        heard += [body for _, _, _, body in server.receive()]
        while socket.poll(0):
            told.append(socket.recv_multipart()[0])
    assert (heard, told) == (([b"body"] * 3, []) if understood else ([], [GREETING] * 3))
    assert server.strangers() == ([] if understood else [greeting])
    assert server.strangers() == []
    server.close()


def test_a_client_learns_the_version_of_a_server_of_another_protocol(pair: tuple[str, str], context: Context) -> None:
    public, secret = wire.new_keypair()
    server: Socket = context.socket(zmq.ROUTER)
    server.linger = 0
    server.curve_server, server.curve_secretkey = True, secret.encode()
    port = server.bind_to_random_port("tcp://127.0.0.1")
    connection = wire.Connection(f"127.0.0.1:{port}", public, pair[1], context)
    assert connection.send(1, b"hello", 5.0)
    peer = server.recv_multipart()[0]
    server.send_multipart([peer, b"beo/2/1/0.9.0", bytes(8), b"whatever it says"])
    assert connection.receive(5.0) == (0, b"")
    text = str(version.mismatch("the head", connection.stranger))
    ours = f"this is protocol 1, beo {__version__}"
    cure = f"install beo 0.9.0 here, or beo {__version__} there"
    assert text == f"the head speaks protocol 2 (beo 0.9.0) ({ours}): {cure}"


def test_a_message_that_goes_with_its_connection_just_before_it_is_read_is_none(
    context: Context, pair: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = wire.Connection("127.0.0.1:1", pair[0], pair[1], context)
    said = iter([True])  # what a socket says that is about to lose its connection
    monkeypatch.setattr(wire, "_readable", lambda socket: next(said, False))
    assert connection.receive() is None
    connection.close()

"""The first moments of a cluster: its head listens before the first entries are on disk."""

import socket
from pathlib import Path

import pytest

from beo import birth, wire
from beo.config import Home
from beo.headnode.server import Server


def test_a_newborn_head_lets_its_own_machines_connect_before_the_first_entry_is_on_disk(tmp_path: Path) -> None:
    home = Home(tmp_path / "beo")
    birth.make_folder(home)
    birth.make_cluster(home)
    server = Server(home)
    try:
        assert server.state.index == 0
        assert all(server._is_known(wire.public_of(home.secret(name))) for name in ("admin", "worker"))
        assert not server._is_known(wire.new_keypair()[0])
    finally:
        server._streams.start()  # it is stopped as it is in a head that ran
        server.close()


def test_a_port_that_was_given_to_one_is_given_to_nobody_else_and_can_be_listened_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = birth.free_address("127.0.0.1")
    port = int(first.rpartition(":")[2])

    class Same:
        def sample(self, ports: range, number: int) -> list[int]:
            return [port, port + 1, port + 2]

    monkeypatch.setattr("beo.birth.random.SystemRandom", Same)
    other = birth.free_address("127.0.0.1")
    assert other != first
    with socket.create_server(("127.0.0.1", port)), socket.create_connection(("127.0.0.1", port), 5.0):
        pass

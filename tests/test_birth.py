"""The first moments of a cluster: its head listens before the first entries are on disk."""

from pathlib import Path

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

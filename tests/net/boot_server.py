"""The server of boots without a head: its records are in memory. ``python -m tests.net.boot_server FOLDER MODE``"""

from __future__ import annotations

import sys
from pathlib import Path

from beo.boot.serve import Server
from beo.boot.shelf import Folder
from beo.boot.switch import Switch
from beo.config import Home
from tests.boot_site import Book, Desk

if __name__ == "__main__":
    home = Home(Path(sys.argv[1]))
    mode = sys.argv[2]
    import logging

    logging.basicConfig(level=logging.INFO)
    assert mode in ("auto", "dhcp", "proxy")
    Server(home, Switch("eth0", mode), Book(), Folder(home), Desk()).run()  # type: ignore[arg-type]

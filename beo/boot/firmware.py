"""The iPXE that firmware is given: the distribution's, or files that lie in the cluster's folder."""

from __future__ import annotations

from pathlib import Path

from beo.boot import ether
from beo.boot.answers import FIRMWARE, Site
from beo.config import Home

SYSTEM = Path("/usr/lib/ipxe")  # of the package `ipxe`


def find(home: Home, system: Path = SYSTEM) -> tuple[dict[str, str], dict[str, str]]:
    """Return (kind of client -> file's name) and (file's name -> path), for the kinds that something is here for."""
    kinds: dict[str, str] = {}
    paths: dict[str, str] = {}
    for kind, names in FIRMWARE.items():
        places = [(name, folder / name) for name in names for folder in (home.path / "firmware", system)]
        for name, path in places:
            if path.is_file():
                kinds[kind], paths[name] = name, str(path)
                break
    return kinds, paths


def site_of(home: Home, interface: str) -> Site:
    """Return what all machines on an interface are told; raises BeoError for one that can't be used."""
    boot, own = home.config().boot, ether.address(interface)
    kinds, _ = find(home)
    return Site(own, f"{own.partition('/')[0]}:{boot.port}", kinds, boot.router, boot.dns, boot.domain)

"""The birth of a cluster: its folder, keys, id and the address of its head. Each is made once and then kept.

Any number of times on the same folder gives the same cluster, also where the first time was cut short.
"""

from __future__ import annotations

import os
import random
import socket
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import msgspec

from beo import wire
from beo.config import ClusterFile, Home, Place, Who, is_address
from beo.errors import Refused, UsageError, reason

KEYS = ("head", "admin", "worker")

PORT_MIN = 10_240  # below live the well-known services
PORT_TRIES = 100


def make_folder(home: Home) -> None:
    """Make the folder and those in it, for our eyes only. Raises Refused where it can't be ours."""
    try:
        home.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        check_owner(home)
        for folder in (home.head, home.nodes, home.logs, home.path / "run"):
            folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise Refused(f"can't make {home.path}", reason(error), "set BEO_DIR to a folder of your own") from None


def check_owner(home: Home) -> None:
    """Raise Refused where the folder is another user's, or open to others' writing."""
    status = home.path.stat()
    if status.st_uid != os.geteuid():
        raise Refused(f"{home.path} is another user's", "", "set BEO_DIR to a folder of your own")
    if status.st_mode & 0o022:
        raise Refused(f"others may write to {home.path}", "they could replace its keys", f"chmod 700 {home.path}")


def make_cluster(home: Home, listen: str = "") -> None:
    """Make the keys, the id and the addresses of the cluster's head where they are missing; those follow `listen`.

    listen: "HOST:PORT"; "" is [head] listen of beo.toml, and port 0 a free one. cluster.json comes last: with it, a
    cluster is whole. Raises UsageError for a listen where nobody can listen.
    """
    for name in KEYS:
        if not (home.keys / f"{name}.secret").exists():
            home.write_secret(name, wire.new_keypair()[1])
    old = home.cluster() if home.cluster_file.exists() else ClusterFile(uuid.uuid4().hex, (), "")
    known = home.who() if home.who_file.exists() else None
    if known is None and len(old.heads) > 1:
        why = "which of this cluster's two heads this machine is, isn't known"
        raise Refused(f"{home.who_file} is gone", why, "restore it from a copy, or 'beo head leave' it, and join anew")
    if known is None:  # none yet, or made by a beo that knew one head only
        known = Who(old.heads[0] if old.heads else "", old.bulk[0] if old.bulk else "", (), "A")
    who = choose_places(home, known, listen)
    if who != known:
        home.write_who(who)
    write_heads(home, msgspec.structs.replace(old, key=wire.public_of(home.secret("head"))), who)


def choose_places(home: Home, known: Who, listen: str = "") -> Who:
    """Return where this head listens: as until now, as far as `listen` (see `make_cluster`) lets it."""
    config = home.config()
    where = listen or config.head.listen
    if not is_address(where):
        raise UsageError(f"[head] listen is {where!r}", "it must be HOST:PORT", 'write "127.0.0.1:0" for any port')
    host, _, port = where.rpartition(":")
    control = f"{host}:{port}" if port != "0" else _kept(known.control, host) or free_address(host)
    bulk = _kept(known.bulk, host) or (listen and _port_behind(control, 1)) or free_address(host)
    link = _kept(known.links[0], host) if known.links else ""
    link = link or (listen and _port_behind(control, 2)) or free_address(host)
    further = (text if ":" in text else f"{text}:{link.rpartition(':')[2]}" for text in config.ha.links)
    return msgspec.structs.replace(known, control=control, bulk=bulk, links=(link, *further))


def write_heads(home: Home, cluster: ClusterFile, who: Who) -> None:
    """Write cluster.json with the addresses of all heads, in the order of their names, if it doesn't have them."""
    places = who.heads.values()
    told = msgspec.structs.replace(
        cluster, heads=tuple(place.control for place in places), bulk=tuple(place.bulk for place in places)
    )
    if not home.cluster_file.exists() or told != home.cluster():
        home.write_cluster(told)


def note_heads(home: Home, heads: Mapping[str, Place]) -> None:
    """Write down which heads the cluster has and where; where this one listens stays as it is."""
    who = home.who()
    others = {name: place for name, place in sorted(heads.items()) if name != who.name}
    if others != who.others:
        who = msgspec.structs.replace(who, others=others)
        home.write_who(who)
    write_heads(home, home.cluster(), who)


def _kept(address: str, host: str) -> str:
    """The address that was chosen earlier, if it is one of this host; else nothing."""
    return address if address.rpartition(":")[0] == host else ""


def _port_behind(address: str, step: int) -> str:
    """The address some ports further, if it is free: ports side by side are easier to tell a firewall."""
    host, _, port = address.rpartition(":")
    with suppress(OSError, OverflowError):
        return _hold(host, int(port) + step)
    return ""


def user_name() -> str:
    """Return who runs this process, by name if it has one."""
    import pwd

    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


_held: list[socket.socket] = []
"""What keeps the last ports that `free_address` has returned from being returned to anybody else."""
HELD_MAX = 64  # a process makes a cluster or two, each of some addresses


def free_address(host: str) -> str:
    """An address with a free port that nobody gets by chance while the head is down for a moment.

    That is one below the range from which the kernel takes the ports of outgoing connections: even a client that tries
    to reach the absent head could get the head's own port from it, and be connected to itself. Nobody else on this
    machine is given it either while this process lives, though it isn't listened on yet.
    """
    with suppress(OSError, ValueError):
        below = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
        for port in random.SystemRandom().sample(range(PORT_MIN, below), PORT_TRIES):
            with suppress(OSError):
                return _hold(host, port)
    try:
        with socket.create_server((host, 0)) as server:
            return f"{host}:{server.getsockname()[1]}"
    except (OSError, ValueError) as error:
        raise UsageError(f"can't listen on {host!r}", reason(error), "mend [head] listen in beo.toml") from None


def _hold(host: str, port: int) -> str:
    """Take a port that nobody has, and let only those have it who mean to listen there. OSError where somebody does.

    It is bound without SO_REUSEADDR, which fails where any other socket has it, and then gets that: so who listens
    (with it, as servers do) succeeds, and who looks for a free port in this way does not.
    """
    held = socket.socket()
    try:
        held.bind((host, port))
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    except BaseException:
        held.close()
        raise
    _held.append(held)
    while len(_held) > HELD_MAX:
        _held.pop(0).close()
    return f"{host}:{port}"

"""Turning machines on and off: by a command of the operator's, or by the packet that wakes one from the network."""

from __future__ import annotations

import shlex
import socket
import subprocess

import click

from beo import messages as m
from beo import table
from beo.boot import ether
from beo.cli.group import Verb, option
from beo.cli.node import find
from beo.client import Cluster
from beo.errors import BeoError, Conflict, TimedOut, UsageError, reason

ACTIONS = ("on", "off", "cycle")
WAKE_PORT = 9  # discard: network cards look for the pattern in any packet
WAKE_TIMES = 3  # nothing acknowledges it
COMMAND_S = 60.0  # for a service processor that is slow to answer
OUTPUT_LENGTH_MAX = 500


@click.command(
    cls=Verb,
    examples=[
        ("beo node power on pc03", "wake it over the network, or by its command"),
        ("beo node power cycle pc03 pc04", "turn both off and on, by their commands"),
    ],
    exits=[("124", "a command took too long")],
)
@click.argument("action", type=click.Choice(ACTIONS))
@click.argument("machines", nargs=-1, required=True, metavar="MACHINE...")
@option("--broadcast", default="", metavar="IP", help="Where the waking packet goes (default: all networks here).")
@option("--yes", is_flag=True, help="Turn it off though its node is up.")
def power(action: str, machines: tuple[str, ...], broadcast: str, yes: bool) -> None:
    """Turn machines on or off.

    By the command that 'beo node set --power' has given a machine; it runs here, as you, without a shell. Without one,
    'on' sends the packet that wakes a machine whose firmware and network card are set to listen (Wake-on-LAN), and it
    must be sent from a machine in the same network: the head.
    """
    with Cluster() as cluster:
        known = cluster.machines()
        meant = [find(known, word) for word in machines]
        if action != "on" and not yes:
            busy = {node.name: node for node in cluster.nodes() if node.state in ("up", "draining") and node.jobs}
            for view in meant:
                if view.name in busy:
                    jobs = table.cell(busy[view.name].jobs)
                    raise Conflict(f"jobs run on {view.name}", jobs, f"'beo drain {view.name}' first, or say --yes")
    for view in meant:
        print(f"{view.name}: {turn(view, action, broadcast)}")


def turn(view: m.MachineView, action: str, broadcast: str) -> str:
    """Turn one machine on or off; return what was done, in words."""
    if view.power:
        return _command(words_of(view, action), view.name)
    if action != "on":
        cure = f"'beo node set {view.name} --power COMMAND'"
        raise UsageError(f"can't power {action} {view.name}", "it has no power command", cure)
    # To 255.255.255.255 it would leave by the default route alone, which of a head with two cards is the wrong one.
    places = [broadcast] if broadcast else ether.broadcasts()
    if not places:
        why = "this machine is in no network"
        raise BeoError("no waking packet can be sent", why, "say --broadcast of its network")
    for place in places:
        wake(view.mac, place)
    return f"a waking packet was sent to {view.mac} by {', '.join(places)}"


def words_of(view: m.MachineView, action: str) -> list[str]:
    """Return a machine's power command word by word, filled in: what is filled in never makes another word."""
    try:
        words = shlex.split(view.power)
    except ValueError as error:
        cure = f"'beo node set {view.name} --power'"
        raise UsageError(f"the power command of {view.name} can't be read", str(error).lower(), cure) from None
    filled = {"action": action, "name": view.name, "mac": view.mac, "address": view.address}
    for name, value in filled.items():
        words = [word.replace(f"{{{name}}}", value) for word in words]
    return words


def _command(words: list[str], name: str) -> str:
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, errors="replace", timeout=COMMAND_S, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        raise TimedOut(f"{words[0]} took longer than {COMMAND_S:.0f} s for {name}", "", "try it by hand") from None
    except (OSError, IndexError) as error:
        cure = f"install it here, or 'beo node set {name} --power'"
        why = reason(error) if isinstance(error, OSError) else "it is empty"
        raise UsageError(f"the power command of {name} doesn't start", why, cure) from None
    said = " ".join((done.stdout + done.stderr).split())[:OUTPUT_LENGTH_MAX]
    if done.returncode:
        why = f"it exited with {done.returncode}: {said}"
        raise BeoError(f"{words[0]} failed for {name}", why, f"try it by hand: {shlex.join(words)}")
    return said or "done"


def packet(mac: str) -> bytes:
    """Return the packet that wakes a machine: six bytes of ones, and its MAC address sixteen times."""
    return b"\xff" * 6 + bytes.fromhex(mac.replace(":", "")) * 16


def wake(mac: str, broadcast: str, port: int = WAKE_PORT) -> None:
    """Send that packet to everybody in a network."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
            out.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            for _ in range(WAKE_TIMES):
                out.sendto(packet(mac), (broadcast, port))
    except OSError as error:
        why = reason(error)
        raise BeoError(f"no waking packet can be sent to {broadcast}", why, "say --broadcast of its network") from None

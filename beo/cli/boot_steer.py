"""The actions of beo boot."""

from __future__ import annotations

import os
import time

import click

from beo import config, table
from beo.boot import ether, firmware, giving, script, switch
from beo.boot.switch import Status, Switch
from beo.cli.group import Verb, option
from beo.config import Home
from beo.errors import NotFound, Refused, UsageError

START_S = 10.0  # for the head to have it served; it takes a second
LOOK_S = 0.05
SILENT_S = 3.0  # a server that says nothing for so long isn't there
MODES = ("auto", "proxy", "dhcp", "off")
PARTS = {"dhcp": "gives addresses", "proxy": "leaves addresses to another server", "": "listens for another server"}


def _heard(home: Home) -> Status | None:
    status = switch.ask(home)
    if status and time.clock_gettime(time.CLOCK_BOOTTIME) - status.said_s < SILENT_S:
        return status
    return None


def _head() -> Home:
    home = config.home()
    if not home.who_file.exists():
        raise NotFound("no head is on this machine", "machines boot from a head", "run this where 'beo head init' was")
    return home


@click.command(
    cls=Verb,
    examples=[
        ("beo boot serve --interface eth1", "on the network of the machines"),
        ("beo boot serve --interface eth1 --mode proxy", "another DHCP server is there, and stays"),
    ],
)
@option("--interface", metavar="IF", help="By which network interface; by default, as beo.toml says.")
@option("--mode", type=click.Choice(MODES), help="dhcp gives addresses, proxy leaves that to another, auto looks.")
@option("--foreground", is_flag=True, help="Serve in this process, until it is interrupted.")
def serve(interface: str | None, mode: str | None, foreground: bool) -> None:
    """Let machines boot from this head, now and after each restart, while it is the primary.

    With two heads say it on both: the other one serves the same addresses after a take-over. With mode auto it listens
    for 3 s whether another DHCP server is there; then, or where [boot] range is empty, it gives no addresses itself.
    """
    home = _head()
    old, boot = switch.read(home), home.config().boot
    chosen = Switch(interface or old.interface or boot.interface, mode or (old.mode if old.is_on else "auto"))  # type: ignore[arg-type]
    if chosen.mode == "off":
        _off(home)
        return
    if not chosen.interface:
        raise UsageError("by which interface?", "beo.toml names none", "say --interface; 'ip link' lists them")
    own = ether.address(chosen.interface)
    if os.geteuid():
        cure = "run the head as root, or use 'beo boot print-dnsmasq' where root runs one"
        raise Refused("no machine can boot from here", "ports 67 and 69 are root's", cure)
    if chosen.mode == "dhcp" or boot.range:
        giving.check_range(firmware.site_of(home, chosen.interface), boot.range)
    if foreground:
        from beo import daemon
        from beo.boot.serve import make

        raise SystemExit(daemon.main("boot", lambda: make(home, chosen)))
    told = _heard(home)
    switch.write(home, chosen)
    deadline = time.monotonic() + START_S
    while not (status := _heard(home)) or status.interface != chosen.interface or status.mode != chosen.mode:
        if time.monotonic() > deadline:
            why = "the head's log tells more"
            if not told:
                why = "it isn't the primary, or not up, or its server can't begin, of which the head's log tells"
            print(f"it will be served by {chosen.interface} ({own}) once this head acts: {why}")
            return
        time.sleep(LOOK_S)
    print(f"machines boot by {status.interface} from {status.http}")
    for trouble in status.troubles:
        print(f"but {trouble}")


@click.command(cls=Verb, examples=[("beo boot status --json", "for a program")])
@option("--json", "as_json", is_flag=True, help="Print JSON.")
def status(as_json: bool) -> None:
    """Tell by which interface machines boot from this head, who gives them their addresses, and what is wrong."""
    home = _head()
    chosen, found = switch.read(home), _heard(home)
    row = {
        "interface": chosen.interface,
        "mode": chosen.mode,
        "state": PARTS[found.part] if found else "off" if not chosen.is_on else "not served by this head now",
        "address": found.address if found else "",
        "http": found.http if found else "",
        "range": found.range if found else home.config().boot.range,
        "other": found.other if found else "",
        "answered": found.answered if found else 0,
        "images": found.sent if found else 0,
        "referred": found.referred if found else 0,
        "givers": found.givers if found else 0,
        "troubles": list(found.troubles) if found else [],
    }
    if as_json:
        import json

        print(json.dumps(row))
        return
    width = max(map(len, row))
    for name, value in row.items():
        if name != "troubles" and value != "":
            print(f"{name:<{width}}  {table.escape(str(value))}")
    for trouble in found.troubles if found else ():
        print(f"trouble: {table.escape(trouble)}")


@click.command(cls=Verb, examples=[("beo boot off", "on both heads, where there are two")])
def off() -> None:
    """Let no machine boot from this head any more. Those that have booted go on."""
    _off(_head())


def _off(home: Home) -> None:
    old = switch.read(home)
    switch.write(home, Switch(old.interface, "off"))
    deadline = time.monotonic() + START_S
    while (found := switch.ask(home)) and os.path.exists(f"/proc/{found.pid}") and time.monotonic() < deadline:
        time.sleep(LOOK_S)
    print("off")


@click.command(name="print-dnsmasq", cls=Verb, examples=[("beo boot print-dnsmasq >/etc/dnsmasq.d/beo.conf", "")])
@option("--interface", metavar="IF", help="By which network interface machines reach this head.")
def print_dnsmasq(interface: str | None) -> None:
    """Print the lines with which a dnsmasq of your own lets machines boot from this head.

    TFTP is then served by 'beo boot serve --mode proxy', or by that dnsmasq out of /usr/lib/ipxe.
    """
    home = _head()
    name = interface or switch.read(home).interface or home.config().boot.interface
    if not name:
        raise UsageError("by which interface?", "beo.toml names none", "say --interface; 'ip link' lists them")
    print(script.dnsmasq(firmware.site_of(home, name), home.config().boot.range), end="")

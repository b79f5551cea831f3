"""The verb boot: whether machines without a disk may boot from this head."""

from __future__ import annotations

import click

from beo.cli.group import Actions

ACTIONS = {
    "serve": ("boot_steer", "serve", "let machines boot from this head"),
    "status": ("boot_steer", "status", "tell how that fares"),
    "off": ("boot_steer", "off", "let none boot from here any more"),
    "print-dnsmasq": ("boot_steer", "print_dnsmasq", "print what a dnsmasq of your own has to say instead"),
}


@click.command(
    cls=Actions,
    actions=ACTIONS,
    examples=[
        ("beo boot serve --interface eth1", "machines on that network boot when they are turned on"),
        ("beo boot status", "by whom they get their addresses, and what is wrong"),
        ("beo boot print-dnsmasq", "where a dnsmasq is there already"),
    ],
)
def boot() -> None:
    """Let machines boot from this head that have nothing on their disks: 'beo boot ACTION --help' tells more."""

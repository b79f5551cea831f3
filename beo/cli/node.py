"""The verb about machines that boot from the heads: beo node, and what their consoles have said."""

from __future__ import annotations

import sys
import time

import click

from beo import config, table, units
from beo import messages as m
from beo.cli.group import Actions, Verb, option
from beo.cli.tables import listing, show
from beo.client import Cluster
from beo.errors import Conflict, NoHead, NotFound, UsageError
from beo.proof import HEX, MAC_DIGITS, mac_of


def _ago(value: object) -> str:
    return f"{units.format_duration(int(value))} ago" if isinstance(value, float) else "never"


AGO = table.Column("seen", _ago)
PENDING_COLUMNS = (table.Column("name"), table.Column("mac"), table.Column("words"), AGO, table.Column("why"))
COLUMNS = (
    table.Column("name"),
    table.Column("state"),
    table.Column("mac"),
    table.Column("address"),
    table.Column("policy"),
    table.Column("image", lambda value: str(value)[:12]),
    AGO,
    table.Column("why"),
)
JSON_ONLY = ("words", "key", "tag", "power", "joined")
LOOK_S = 1.0  # between two looks at a console that is followed

ACTIONS = {
    "list": ("node", "list_machines", "list them"),
    "pending": ("node", "pending", "list those that wait to be approved, and their words"),
    "approve": ("node", "approve", "let one join whose words you have compared"),
    "set": ("node", "set_machine", "change its name, address, image, policy, tag or power"),
    "forget": ("node", "forget_machine", "take some off the record"),
    "power": ("power", "power", "turn some on or off"),
}


@click.command(
    cls=Actions,
    actions=ACTIONS,
    examples=[
        ("beo node pending", "who waits, with the words on its console"),
        ("beo node approve pc03", "it is the one that it says it is"),
        ("beo node set pc03 --policy lan", "from now on without asking"),
        ("beo node power cycle pc03", "turn it off and on"),
    ],
)
def node() -> None:
    """Look after machines that boot from the heads. MACHINE is a name, a MAC address, or, to approve, its words.

    Every boot of such a machine makes a key of its own. Its policy says when that key is its node's: 'lan' trusts who
    has just fetched the boot script, and can be spoofed; 'approve' asks an operator, who compares four words; 'asset'
    wants a proof of the machine's asset tag.
    """


def _row(view: m.MachineView) -> dict[str, object]:
    return {
        "name": view.name,
        "state": view.state,
        "mac": view.mac,
        "address": view.address or None,
        "policy": view.policy,
        "image": view.image,
        "seen": max(0.0, time.time() - view.seen_s) if view.seen_s else None,
        "why": view.why or None,
        "words": view.words,
        "key": view.key,
        "tag": view.has_tag,
        "power": view.power,
        "joined": view.joined_s or None,
    }


def find(machines: tuple[m.MachineView, ...], word: str) -> m.MachineView:
    """Return the machine of a name, a MAC address, or the four words of its key."""
    words = " ".join(word.split()).lower()
    named = [view for view in machines if word == view.name or (words and words == view.words)]
    if not named and len(set(word.lower()) - {":", "-"} - HEX) == 0 and len(word) >= MAC_DIGITS:
        named = [view for view in machines if view.mac == mac_of(word)]
    if not named:
        raise NotFound.among("machine", word, [view.name for view in machines], "see 'beo node list'")
    return named[0]


@click.command(cls=Verb, examples=[("beo node list", "all of them"), ("beo node list --json", "with keys and words")])
@listing
def list_machines(fields: str, as_json: bool, quiet: bool) -> None:
    """List the machines that boot from the heads.

    One is pending while an operator is asked, approved when it may join, and joined. WHY says what it was refused for
    within the last minutes.
    """
    show(list(map(_row, Cluster().machines())), COLUMNS, fields, as_json, quiet, JSON_ONLY)


@click.command(cls=Verb, examples=[("beo node pending", "compare the words with those on their consoles")])
@listing
def pending(fields: str, as_json: bool, quiet: bool) -> None:
    """List the machines that wait to be approved. The words are their keys': the same stand on their own consoles."""
    waiting = [view for view in Cluster().machines() if view.state == "pending" and view.key]  # which has asked
    show(list(map(_row, waiting)), PENDING_COLUMNS, fields, as_json, quiet, (*JSON_ONLY, "state", "policy", "image"))


@click.command(
    cls=Verb,
    examples=[
        ("beo node approve pc03", "shows its words, and asks whether they are on its console"),
        ("beo node approve famip fahiv rijik honun", "the one whose console says these"),
    ],
)
@click.argument("words", nargs=-1, required=True, metavar="MACHINE")
@option("--yes", is_flag=True, help="Don't ask.")
def approve(words: tuple[str, ...], yes: bool) -> None:
    """Let a machine join, in its present boot. MACHINE is its name or MAC address, or the words on its console.

    Each boot needs an approval of its own: 'beo node set --policy' knows other ways.
    """
    with Cluster() as cluster:
        view = find(cluster.machines(), " ".join(words))
        if not view.key:
            raise Conflict(f"{view.name} hasn't asked to join", "", "start it, then see 'beo node pending'")
        said = len(words) > 1
        if not yes and not said and sys.stdin.isatty():
            click.confirm(f"Does the console of {view.name} say: {view.words}?", abort=True, err=True)
        print(f"{cluster.approve_machine(view.mac, view.key).name} may join")


@click.command(
    cls=Verb,
    examples=[
        ("beo node set pc03 --policy lan", "known by that it boots here"),
        ("beo node set pc03 --tag PC-0042 --policy asset", "known by its asset tag"),
        ("beo node set 52:54:00:12:34:56 --name lab1", "also before it has ever booted"),
        ("beo node set pc03 --power 'ipmitool -H 10.1.0.3 -f /etc/beo/pw power {action}'", "for 'beo node power'"),
    ],
)
@click.argument("machine", metavar="MACHINE")
@option("--name", metavar="NAME", help="Of its node, from its next boot on.")
@option("--address", metavar="IP", help="Its own, from its next boot on.")
@option("--image", metavar="SHA256", help="What it boots: 'current', or an image's sha256.")
@option("--policy", metavar="POLICY", help="lan, approve or asset; 'default': as beo.toml says.")
@option("--tag", metavar="TAG", help="Its asset tag; the head learns only what proofs are made with. '-': none.")
@option(
    "--power",
    metavar="WORDS",
    help="Its command: {action} in it becomes on, off or cycle; {name}, {mac}, {address} too.",
)
def set_machine(
    machine: str,
    name: str | None,
    address: str | None,
    image: str | None,
    policy: str | None,
    tag: str | None,
    power: str | None,
) -> None:
    """Change what is on record of a machine. MACHINE is its name or MAC address; an unknown one is put on record."""
    from beo.proof import tag_key

    if (name, address, image, policy, tag, power) == (None,) * 6:
        raise UsageError(f"beo node set {machine}: what", "", "say --name, --policy or another option")
    with Cluster() as cluster:
        try:
            mac = find(cluster.machines(), machine).mac
        except NotFound:
            if ":" not in machine and sum(letter in HEX for letter in machine.lower()) != MAC_DIGITS:
                raise
            mac = mac_of(machine)
        secret = None if tag is None else "" if tag == "-" else tag_key(mac, tag)
        words = {"name": name, "address": address, "image": image, "power": power, "tag": secret}
        view = cluster.set_machine(mac, **words, policy="" if policy == "default" else policy)
        print(
            f"{view.name}: {view.mac}, {view.address or 'no address of ours'}, {view.policy}, image {view.image[:12]}"
        )


@click.command(cls=Verb, examples=[("beo node forget pc03", "it was given away")])
@click.argument("machines", nargs=-1, required=True, metavar="MACHINE...")
def forget_machine(machines: tuple[str, ...]) -> None:
    """Take machines off the record that are off. Their addresses are free, and their keys void."""
    with Cluster() as cluster:
        known = cluster.machines()
        for view in [find(known, word) for word in machines]:
            cluster.forget_machine(view.mac)


@click.command(
    cls=Verb,
    examples=[("beo console pc03", "the last it said"), ("beo console pc03 -f", "and what comes")],
)
@click.argument("machine", metavar="MACHINE")
@option("-f", "--follow", is_flag=True, help="Go on with what comes.")
@option("--all", "whole", is_flag=True, help="All that is kept.")
def console(machine: str, follow: bool, whole: bool) -> None:
    """Print what a machine that boots from the heads has said on its console: of its boots, its kernel, its daemons.

    The head that it spoke to keeps the last 128 KiB or more, over its end. After a take-over the other head has what is
    said from then on, behind what it heard when it acted before.
    """
    with Cluster(config.home()) as cluster:
        mac = find(cluster.machines(), machine).mac
        first = after = 0 if whole else -1
        head = ""
        while True:
            answer = _next(cluster, mac, after, patient=follow and after > 0)
            if head not in ("", answer.head):  # it counts what it has heard itself
                print(f"beo: from here on what head {answer.head} has heard", file=sys.stderr)
                head, after = answer.head, first
                continue
            head = answer.head
            for line in answer.data.decode(errors="replace").splitlines():
                print(table.escape(line))
            if not answer.data or (not whole and not follow):
                if not follow:
                    return
                sys.stdout.flush()
                time.sleep(LOOK_S)
            after = answer.after


def _next(cluster: Cluster, mac: str, after: int, patient: bool) -> m.ConsoleIs:
    """What comes after so many bytes; who follows waits for a head that is away."""
    while True:
        try:
            return cluster.console(mac, after)
        except NoHead:
            if not patient:
                raise
            time.sleep(LOOK_S)

"""The actions of ha that change who acts, and how: switchover, takeover, freeze, thaw, set, force-primary."""

from __future__ import annotations

import time

import click

from beo import config, units
from beo import messages as m
from beo.cli.group import Verb, option
from beo.client import Cluster
from beo.errors import Conflict, NoHead, NotFound, TimedOut, UsageError
from beo.ha import telling
from beo.ha.telling import Fare
from beo.votes import epoch_text

ROLE_MAX_S = 10.0  # for a role to change hands: a hand-over takes 0.1 s, an election up to a few leases
STEP_S = 3.0  # for the other one to be in step behind it
LOOK_S = 0.05

HEAD = click.argument("name", default="", metavar="[HEAD]")


def _fare(cluster: Cluster) -> Fare:
    return telling.fare(cluster.pair())


def _await_primary(cluster: Cluster, name: str, step_s: float = 0.0) -> None:
    """Return when this head acts, and then, if that comes within `step_s`, is in step with the other one.

    Raises TimedOut with what keeps it from acting.
    """
    deadline_s = time.monotonic() + ROLE_MAX_S
    why = ""
    while time.monotonic() < deadline_s:
        told = _fare(cluster)
        if told.primary and told.primary.name == name:
            acts_s = time.monotonic()
            while told.primary and not told.primary.in_step and time.monotonic() < acts_s + step_s:
                time.sleep(LOOK_S)
                told = _fare(cluster)
            in_step = bool(told.primary and told.primary.in_step)
            print(f"{name} is the primary now" + (", and both heads are in step" if in_step else ""))
            return
        mine = told.answers.get(name)
        why = (told.primary.why if told.primary else "") or (mine.why if mine else told.silent.get(name, "")) or why
        time.sleep(LOOK_S)
    raise TimedOut(f"{name} doesn't act after {ROLE_MAX_S:.0f} s", why, "see 'beo ha status'")


def _other(told: Fare, name: str, cure: str) -> m.HeadView:
    """The head that is meant: by its name, or the one that is not the primary."""
    if len(told.heads) < 2:
        raise Conflict("this cluster has one head", "", "join a second one: see 'beo head token'")
    if name and name not in told.heads:
        raise NotFound.among("head", name, told.heads, f"it has {' and '.join(told.heads)}")
    rest = [head for head in told.heads if not told.primary or head != told.primary.name]
    if not name and len(rest) != 1:
        raise UsageError("which head is meant", "none acts at present", cure)
    return told.heads[name or rest[0]]


@click.command(
    cls=Verb,
    examples=[("beo ha switchover", "the standby acts, and the primary stands by")],
    exits=[("75", "the heads are not in step"), ("124", "it did not come about in time")],
)
def switchover() -> None:
    """Let the two heads change their roles, as before a machine is serviced: nobody waits, and nothing is lost.

    Both must be in step. It takes a fraction of a second, in which requests wait; jobs and what they print go on.
    """
    with Cluster() as cluster:
        told = _fare(cluster)
        if not told.primary:
            raise NoHead("no head acts", telling.promise(told), "see 'beo ha status'")
        other = _other(told, "", "")
        cluster.steer(told.heads[told.primary.name].control, "switchover")
        _await_primary(cluster, other.name, STEP_S)


@click.command(
    cls=Verb,
    examples=[
        ("beo ha takeover", "the primary is dead, and take-over is manual"),
        ("beo ha takeover B", "B should act"),
    ],
    exits=[("75", "the other head acts"), ("124", "it can't act: too few others agree")],
)
@HEAD
def takeover(name: str) -> None:
    """Let HEAD act when the primary is dead, where take-over is manual or frozen.

    It is the same safe way as by itself: without enough voters, or with less than all that was acknowledged, it does
    not act. A primary that lives keeps its role: see 'beo ha switchover'.
    """
    with Cluster() as cluster:
        told = _fare(cluster)
        if told.primary and told.primary.name != name:
            why = f"in epoch {epoch_text(told.primary.epoch)}"
            raise Conflict(f"{told.primary.name} acts", why, "'beo ha switchover' lets them change their roles")
        if told.primary:
            print(f"{name} is the primary already")
            return
        if not name and len(told.answers) == 1:
            name = next(iter(told.answers))
        meant = _other(told, name, f"say one of {' and '.join(told.heads)}")
        cluster.steer(meant.control, "takeover")
        _await_primary(cluster, meant.name)


@click.command(
    cls=Verb,
    examples=[
        ("beo ha freeze", "while the switch between the heads is exchanged"),
        ("beo ha thaw", "all is well again"),
    ],
)
def freeze() -> None:
    """Let no head take over, until 'beo ha thaw'. The primary acts on as long as it lives.

    'beo ha takeover' and 'beo ha switchover' still do what they say.
    """
    with Cluster() as cluster:
        cluster.freeze(True)
    print("take-over is frozen, until 'beo ha thaw'")


@click.command(cls=Verb, examples=[("beo ha thaw", "the standby may take over again")])
def thaw() -> None:
    """Let a head take over again, after 'beo ha freeze'."""
    with Cluster() as cluster:
        cluster.freeze(False)
        told = _fare(cluster)
    print(telling.takeover(told))


@click.command(
    cls=Verb,
    name="set",
    examples=[
        ("beo ha set --level B", "acknowledge what the standby has received, before it is on its disk"),
        ("beo ha set --takeover manual", "an operator decides"),
        ("beo ha set --lease 2s --silence 1s", "for machines or networks that pause now and then"),
    ],
)
@option("--level", type=click.Choice(["A", "B", "C"]), help="What an acknowledgement is worth: see 'beo ha status'.")
@option("--takeover", type=click.Choice(["automatic", "manual"]), help="Who lets the standby act.")
@option("--failback", type=click.Choice(["on", "off"]), help="Whether A gets its role back when it is in step.")
@option("--lease", default="", metavar="TIME", help="A primary that is silent for so long is replaced.")
@option("--silence", default="", metavar="TIME", help="After so long without the standby the primary goes on alone.")
def set_(level: str | None, takeover: str | None, failback: str | None, lease: str, silence: str) -> None:
    """Change what both heads agree on, and print what holds then. It is an entry of the journal, so both have it.

    At level C what is acknowledged is on both heads' disks, at B on the primary's and received by the standby, at A on
    the primary's.
    """
    wishes: dict[str, object] = {
        "level": level,
        "takeover": takeover,
        "failback": None if failback is None else failback == "on",
        "lease_s": units.parse_duration(lease) if lease else None,
        "silence_s": units.parse_duration(silence) if silence else None,
    }
    with Cluster() as cluster:
        if any(value is not None for value in wishes.values()):
            cluster.set_pair(**wishes)
        told = _fare(cluster)
    one = told.primary or next(iter(told.answers.values()), None)
    if one is None:
        raise NoHead("no head tells what holds", "", "see 'beo ha status'")
    print(f"level {one.level}, take-over {one.takeover}, failback {'on' if one.failback else 'off'}", end=", ")
    print(f"lease {one.lease_s:g} s, silence {one.silence_s:g} s")


@click.command(
    cls=Verb,
    name="force-primary",
    examples=[("beo ha force-primary --i-know-the-other-is-dead", "on the machine of the head that is left")],
    exits=[("75", "the other head answers"), ("124", "it did not come about in time")],
)
@HEAD
@option("--i-know-the-other-is-dead", "sure", is_flag=True, help="Say so, and that it will not come back as it was.")
def force_primary(name: str, sure: bool) -> None:
    """Go on with HEAD (default: this machine's) alone, when the other one is gone for good and it can't act by itself.

    What the other head had acknowledged and this one never got is lost. If the other one lives, two heads act at once:
    look first. Should it come back it is shut out until 'beo ha rejoin --wipe' is said on its machine.
    """
    with Cluster() as cluster:
        told = _fare(cluster)
        if not name:
            home = config.home()
            if home.second.who_file.exists() or not home.who_file.exists():
                raise UsageError("which head is meant", "", f"say one of {' and '.join(told.heads) or 'A and B'}")
            name = home.who().name
        if name not in told.heads:
            raise NotFound.among("head", name, told.heads, "see 'beo ha status'")
        others = [other for other in told.answers if other != name]
        if others:
            cure = "'beo ha takeover' or 'beo ha switchover', or 'beo down' there"
            raise Conflict(f"head {others[0]} answers", "it isn't dead", cure)
        if not sure:
            rest = " and ".join(other for other in told.heads if other != name) or "the other one"
            why = f"what {rest} had alone is lost, and two heads act if it lives"
            raise UsageError("nothing was done", why, "look first, then say --i-know-the-other-is-dead")
        cluster.steer(told.heads[name].control, "force")
        _await_primary(cluster, name)

"""How a second head comes to be: on a machine of its own by a token, or beside the first one, and how one starts anew.

The newcomer is enrolled by its own key, says where it will listen, and is told what every head must know. Each step may
be cut short and be done again: what it has written by then is used, cluster.json comes last.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import msgspec

from beo import address, birth, local, lockfile, machines, question, wire
from beo import messages as ms
from beo.config import ClusterFile, Home, Place, Who
from beo.errors import BeoError, Conflict, NotFound, Refused, TimedOut, UsageError
from beo.tree import orphans, wiped

Echo = Callable[[str], object]

OWN = "newcomer"  # the key by which the cluster knows this head as a machine; all heads share the key `head`
ALONE_S = 15.0  # for a head to go on without the other one: its silence, and an election or none
KILL_S = 5.0  # from SIGKILL to the end
STEP_MAX_S = 60.0  # a journal of 100,000 jobs is here within a few seconds
LOOK_S = 0.1
TOKEN_S = 60.0  # of the token for the second head of the same machine: it is used at once
NOBODY = Who("", "", (), "")


def join(home: Home, head: str, text: str, listen: str, workers: int | None, slots: int | None, echo: Echo) -> None:
    """Make this machine the second head, if it isn't yet, and start it; return when it is in step.

    head: where the first one is, text: the token; without both, it says again where it is reached. listen: HOST,
    HOST:PORT or "" for the address on the way to the first head. workers: nodes of this machine itself.
    """
    last = local.read_plan(home)
    _check_folder(home, last)
    if text:
        _, cluster = machines.enrol(home, head, text, OWN, "head", "", echo)
    elif not (home.keys / f"{OWN}.secret").exists() or not home.cluster_file.exists():
        cure = "type the line that 'beo head token' prints on the first head's machine"
        raise UsageError("this machine is no head yet", "it needs a token" if head else "", cure)
    else:
        cluster = home.cluster()
    known = home.who() if home.who_file.exists() else NOBODY
    where = _choose_listen(home, known, listen, _others(known, cluster))
    who = birth.choose_places(home, known, where)
    take_in(home, cluster, who, echo)

    def choose(last: local.Plan | None) -> local.Plan:
        base = last or local.Plan(0, 1)
        count = workers if workers is not None else base.workers
        prefix = base.prefix if last else f"{machines.own_name('')}-"
        base = msgspec.structs.replace(base, workers=count, listen=where, prefix=prefix)
        return local.choose(base, count, slots, base.head, base.agent)

    plan, was_up = local.start(home, choose)
    own = home.who()
    echo(
        f"{'already up' if was_up else 'up'}: head {own.name} at {own.control}" + (f", {plan}" if plan.workers else "")
    )
    await_step(home, echo)
    echo("what to type next: 'beo ha status' tells how both heads fare, on either machine")


def up(home: Home, workers: int | None, slots: int | None, heads: int | None, echo: Echo) -> None:
    """`beo up` with two heads on this machine, each as if it were on one of its own; return when they are in step.

    heads: None is as the last time. The second one joins as one on another machine does, by a token that is made here.
    """

    def choose(last: local.Plan | None) -> local.Plan:
        plan = local.choose(last, workers, slots, local.HEAD_ARGV, local.AGENT_ARGV)
        if heads and not plan.serves:
            raise UsageError(f"--heads {heads}", f"this machine is {plan.title}", "leave it")
        if heads == 1 and plan.heads > 1:
            raise Conflict("this cluster has two heads", "both are here", "'beo head leave' takes one of them away")
        if heads == 2 and plan.heads == 1 and len(_known_heads(home)) > 1:
            raise Conflict("this cluster has two heads", "one is on another machine", "leave --heads")
        return msgspec.structs.replace(plan, heads=heads or plan.heads)

    plan, was_up = local.start(home, choose)
    told: list[str] = []
    if plan.heads > 1:
        make_second(home, echo)
        await_step(home, told.append)
    local.greet(home, plan, was_up, echo, told)


def _known_heads(home: Home) -> dict[str, Place]:
    return home.who().heads if home.who_file.exists() else {}


def make_second(home: Home, echo: Echo) -> None:
    """Make the second head's folder beside the first one's, if it isn't whole; the supervisor starts it then."""
    other = home.second
    if other.cluster_file.exists():
        return
    cluster = home.cluster()
    birth.make_folder(other)
    if not other.toml.is_symlink() and not other.toml.exists():
        other.toml.symlink_to(Path("..", home.toml.name))  # settings are the same, or both heads are not
    who = birth.choose_places(other, NOBODY, f"{home.who().control.rpartition(':')[0]}:0")
    if (other.keys / f"{OWN}.secret").exists():  # it was cut short
        with suppress(Refused):
            take_in(other, cluster, who, echo)
            return
    text, _ = machines.new_token(home, "head", 1, TOKEN_S)
    machines.enrol(other, cluster.heads[0], text, OWN, "head", "", echo)
    take_in(other, cluster, who, echo)


def _check_folder(home: Home, last: local.Plan | None) -> None:
    """Refuse a folder that belongs to something else already."""
    if last and not last.serves:
        raise Conflict(f"this machine is {last.title}", str(home.path), "set BEO_DIR to another folder")
    if (home.head / "journal.db").exists() and not (home.keys / f"{OWN}.secret").exists():
        why = f"it is head {home.who().name} of one" if home.who_file.exists() else ""
        raise Conflict(f"{home.path} has a cluster of its own", why, "set BEO_DIR to another folder")
    if local.is_running(home):
        raise Conflict("this machine's head is up", str(home.path), "'beo ha status' tells how it fares, or 'beo down'")


def _others(known: Who, cluster: ClusterFile) -> list[str]:
    return [head for head in cluster.heads if head != known.control]


def _choose_listen(home: Home, known: Who, listen: str, others: Iterable[str]) -> str:
    """Where to listen: as asked for, else as until now, else by the way to the first head at the usual port."""
    if not listen and known.control:
        return known.control
    first = next(iter(others), "")
    host, port = address.split(listen, address.HEAD_PORT) if listen else ("", address.HEAD_PORT)
    host = address.check_own(host or address.own(first.rpartition(":")[0]))
    if listen.endswith(f":{port}"):
        return f"{host}:{port}"
    return f"{host}:{port}" if machines.is_free(home, host, port) else f"{host}:0"


def take_in(home: Home, cluster: ClusterFile, who: Who, echo: Echo) -> None:
    """Ask to be taken in by our own key, and write down what a head must know."""
    asked_s = time.time()
    wish = ms.JoinHead(who.control, who.bulk, who.links)
    answer = question.ask(cluster.heads, cluster.key, home.secret(OWN), wish, ms.HeadJoinedIs)
    if answer.cluster != cluster.cluster:
        raise Conflict("who answers is of another cluster", f"{answer.cluster[:8]}…", "remove the folder, join again")
    machines.check_clock(answer.time_s - (asked_s + time.time()) / 2, echo)
    if wire.public_of(answer.keys.get("head", "")) != cluster.key:
        raise Refused("the head didn't send its keys", "", "install the head's beo here, and join again")
    for name in birth.KEYS:
        home.write_secret(name, answer.keys[name])
    places = {view.name: Place(view.control, view.bulk, view.links) for view in answer.heads}
    others = {name: place for name, place in places.items() if name != answer.name}
    told = msgspec.structs.replace(who, name=answer.name, others=others)
    home.write_who(told)
    birth.write_heads(home, cluster, told)


def rejoin(home: Home, name: str, wipe: bool, echo: Echo) -> None:
    """Put aside what a head of this machine has, and let it begin with nothing; return when it is in step again."""
    own = _own(home, name)
    who = own.who()
    found = [view for view in views(own).values() if isinstance(view, ms.PairIs)]
    acting = next((view for view in found if view.role == "primary" and view.name != who.name), None)
    if acting is None:
        mine = any(view.role == "primary" for view in found)
        why = "it acts itself" if mine else "what is here may be the only copy"
        raise Conflict(f"no other head acts than {who.name}", why, "see 'beo ha status'")
    if not wipe:
        why = f"it would begin anew, with what {acting.name} has; what is here goes to {own.head}.old-N"
        raise UsageError(f"nothing was done to head {who.name}", why, "say --wipe if you mean it")
    aside = put_aside(own)
    echo(f"what head {who.name} had is in {aside}")
    if not local.is_running(home):
        echo("it begins anew at the next 'beo up'")
        return
    await_step(home, echo)
    for line in wiped.look(own.path, own.head):
        echo(line)
    if count := orphans.count(own.head / "tree" / "orphans"):
        echo(f"{count} changes of files were on head {who.name} alone: 'beo ha orphans' lists them")


def leave(home: Home, name: str, echo: Echo) -> None:
    """Let a head belong to the cluster no more: one of this machine, which is ended, or one that answers no more."""
    here = {one.who().name: one for one in (home, home.second) if one.who_file.exists()}
    if not here:
        home.who()  # which says so
    name = name or (next(iter(here)) if len(here) == 1 else local.SECOND)
    heads = next(iter(here.values())).who().heads
    if name not in heads or len(heads) < 2:
        raise NotFound.among("head", name, heads, f"this cluster has {' and '.join(heads)}")
    rest = next(other for other in heads if other != name)
    if name not in here:
        if any(isinstance(view, ms.PairIs) and view.name == name for view in views(home).values()):
            raise Conflict(f"head {name} answers", "", "say 'beo head leave' on its machine, or 'beo down' there first")
        _sign_off(home, name, rest)
        echo(f"head {name} belongs to the cluster no more: should its machine come back, remove the folder there")
        return
    if len(here) > 1 and name != local.SECOND:
        raise Conflict(f"head {name}'s folder holds the other one's", str(home.path), f"let {local.SECOND} leave")
    if len(here) > 1:
        aside = local.end_second(home, lambda: _sign_off(home, name, rest))
        echo(f"head {name} belongs to the cluster no more; what it had is in {aside}")
        return
    local.down(home, lambda _: None)
    try:
        _sign_off(home, name, rest)
    except BeoError:
        local.start(home, lambda last: last or local.Plan(0, 1))  # as it was
        raise
    aside = local.free_name(home.head)
    os.rename(home.head, aside)
    for path in (home.cluster_file, home.path / "local.json", *home.keys.glob("*.secret")):
        path.unlink(missing_ok=True)
    echo(f"head {name} belongs to the cluster no more; what it had is in {aside}")


def _sign_off(home: Home, name: str, rest: str) -> None:
    """Have the journal say that a head has left, as soon as the other one goes on without it."""
    cluster = home.cluster()
    deadline_s = time.monotonic() + ALONE_S
    why = ""
    while time.monotonic() < deadline_s:
        found = [view for view in views(home).values() if isinstance(view, ms.PairIs) and view.name == rest]
        if found and found[0].role == "primary" and not found[0].in_step and _goes_alone(found[0]):
            question.ask(cluster.heads, cluster.key, home.secret("admin"), ms.LeaveHead(name), ms.Done)
            return
        why = found[0].why if found else f"{rest} doesn't answer"
        time.sleep(LOOK_S)
    cure = "'beo ha status' tells why: it needs a voter that agrees"
    raise TimedOut(f"{rest} doesn't go on without {name}", why or f"tried for {ALONE_S:.0f} s", cure)


def _goes_alone(view: ms.PairIs) -> bool:
    """Whether a primary's value of the register is to go on alone. Whoever answers a LeaveHead has that chosen."""
    return view.cfg is not None and len(view.cfg.isr) == 1


def _own(home: Home, name: str) -> Home:
    """The folder of the head that is meant: of this machine's the only one, or that of this name."""
    here = {one.who().name: one for one in (home, home.second) if one.who_file.exists()}
    if not here:
        home.who()  # which says so
    if name and name not in here:
        raise NotFound.among("head", name, here, f"on this machine is {' and '.join(here)}")
    if not name and len(here) > 1:
        raise UsageError("which head is meant", "both are on this machine", f"say {' or '.join(sorted(here))}")
    return here[name or next(iter(here))]


def put_aside(home: Home) -> Path:
    """Let a head's folder be an empty one that knows who it is; return where the former is. Its process is killed."""
    who = home.who()
    aside = local.free_name(home.head)
    fresh = Home(home.path / "head.new")  # whose head/ is to be
    shutil.rmtree(fresh.path, ignore_errors=True)
    fresh.head.mkdir(mode=0o700, parents=True)
    fresh.write_who(who)
    process = lockfile.holding(home.head / "lock")
    if process:  # what it opens from here on would be the new folder's
        process.send(signal.SIGSTOP)
    try:
        os.rename(home.head, aside)
        os.rename(fresh.head, home.head)
        fresh.path.rmdir()
        for kept in ("orphans", "tree/orphans"):  # what was put aside before is still the only copy
            if (aside / kept).exists():
                (home.head / kept).parent.mkdir(mode=0o700, exist_ok=True)
                os.rename(aside / kept, home.head / kept)
    finally:
        if process:
            process.send(signal.SIGKILL)
            process.wait(KILL_S)
            process.close()
    return aside


# ---- how they fare ----------------------------------------------------------------------------------------------


def views(home: Home, patience_s: float = question.LOOK_S) -> dict[str, ms.PairIs | BeoError]:
    """Return what each head says of the pair, by address; by the admin's key, on a head's machine."""
    cluster = home.cluster()
    return question.look(cluster.heads, cluster.key, home.secret("admin"), ms.AskPair(), ms.PairIs, patience_s)


def await_step(home: Home, echo: Echo) -> None:
    """Return when both heads are in step; raises TimedOut, which is no reason to end anything: it goes on trying."""
    began_s = time.monotonic()
    told = "nothing is known of it yet"
    try:
        while time.monotonic() < began_s + STEP_MAX_S:
            found = [view for view in views(home).values() if isinstance(view, ms.PairIs)]
            primary = next((view for view in found if view.role == "primary"), None)
            standby = next((view for view in found if view is not primary), None)
            if primary and primary.in_step and standby and standby.cfg:  # one that was emptied may not be missed yet
                echo(f"in step: {primary.name} is the primary, {standby.name} the standby")
                return
            told = _progress(primary, found)
            local.progress(f"beo: {told} ({time.monotonic() - began_s:.0f} s)")
            time.sleep(LOOK_S)
    finally:
        local.progress("")
    cure = "it goes on trying: 'beo ha status' tells more"
    raise TimedOut(f"not in step after {STEP_MAX_S:.0f} s", told, cure)


def _progress(primary: ms.PairIs | None, found: list[ms.PairIs]) -> str:
    if primary is None:
        return next((view.why for view in found if view.why), "no head acts yet")
    lag = max(0, primary.last - primary.match)
    return primary.why or (f"{lag} entries are missing" if lag else "about to be in step")

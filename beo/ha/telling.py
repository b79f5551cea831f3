"""How two heads fare, in words: what `beo ha status` says of the answers that it got. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from beo import messages as ms
from beo import nodeset, units
from beo.errors import BeoError
from beo.ha import verify
from beo.votes import epoch_text

IN_STEP, ALONE, NOBODY = 0, 1, 69  # exit codes
HOLDER, WITNESS = "holder/", "witness:"  # how the names of voters begin that are no workers
VOTER_SILENT_S = 5.0  # who has been silent for longer is no help in an election

Answers = Mapping[str, ms.PairIs | BeoError]  # by address


class Fare(NamedTuple):
    """All that the heads tell: their answers, the one of the primary if there is one, and the heads by name."""

    answers: dict[str, ms.PairIs]  # by name
    primary: ms.PairIs | None
    heads: dict[str, ms.HeadView]
    silent: dict[str, str]  # name or address -> why it doesn't answer


def fare(found: Answers) -> Fare:
    """Put the answers of all heads together. Of two that take themselves for the primary the later epoch counts."""
    answers = {view.name: view for view in found.values() if isinstance(view, ms.PairIs)}
    acting = sorted((view for view in answers.values() if view.role == "primary"), key=lambda view: view.epoch)
    heads = {head.name: head for view in answers.values() for head in view.heads}
    names = {head.control: name for name, head in heads.items()}
    silent = {
        names.get(address, address): error.what + (f" ({error.why})" if error.why else "")
        for address, error in found.items()
        if isinstance(error, BeoError)
    }
    for name in sorted(heads.keys() - answers.keys() - silent.keys()):
        silent[name] = f"head {name} was not asked"
    return Fare(dict(sorted(answers.items())), acting[-1] if acting else None, dict(sorted(heads.items())), silent)


def exit_code(told: Fare) -> int:
    """0: in step; 1: alone, or something is not as it should be; 69: nobody acts."""
    if told.primary is None:
        return NOBODY
    return IN_STEP if told.primary.in_step and len(told.answers) == len(told.heads) else ALONE


def rows(told: Fare) -> list[dict[str, object]]:
    """One row per head."""
    found: list[dict[str, object]] = []
    for name, head in told.heads.items():
        view = told.answers.get(name)
        if view is None:
            found.append({"head": name, "role": "silent", "address": head.control, "why": told.silent.get(name)})
            continue
        ahead = told.primary.last if told.primary else view.last
        found.append(
            {
                "head": name,
                "role": view.role,
                "state": _state(view, told),
                "epoch": epoch_text(view.epoch),
                "entries": view.last,
                "safe": view.commit if view.role == "primary" else None,
                "behind": max(0, ahead - view.last),
                "heard": view.heard_s if view.heard_s >= 0 else None,
                "version": view.version,
                "address": head.control,
                "why": view.why or None,
            }
        )
    for address, why in told.silent.items():
        if address not in told.heads:
            found.append({"head": "?", "role": "silent", "address": address, "why": why})
    return found


def _state(view: ms.PairIs, told: Fare) -> str:
    if told.primary and told.primary.in_step:
        return "in step"
    if view is told.primary:
        return "alone"
    return "follows" if view.role == "standby" else "-"


def sentences(told: Fare, now_s: float) -> Iterator[str]:
    """What follows from it: what is promised, who takes over, who votes, and what was measured."""
    one = told.primary or next(iter(told.answers.values()), None)
    if one is None:
        return
    yield promise(told)
    if len(told.heads) > 1:
        yield takeover(told)
        yield voters(one.voters, told.heads)
        if told.primary and (lag := told.primary.output_lag_bytes):
            known = lag < units.SIZE_LIMIT_BYTES  # what a silent head lacks isn't
            yield f"output: the standby lacks {units.format_size(lag) if known else 'an unknown amount'}"
    yield from files(told)
    yield from resources(told)
    yield measured(one, now_s)


def files(told: Fare) -> Iterator[str]:
    """What an acknowledgement of a change of the tree of files means, where that is another level than C."""
    one = told.primary
    if one is None or not one.in_step:
        return
    other = next((name for name in told.heads if name != one.name), "the other one")
    match one.config.get("files.level"):
        case "A":
            yield f"files: level A: a change is on the disk of {one.name}: with its machine the newest may be lost"
        case "B":
            yield f"files: level B: a change is on the disk of {one.name} and has been received by {other}"


def resources(told: Fare) -> Iterator[str]:
    """Which head has the service address, and what programs of on_promote run where."""
    configs = {name: view.config for name, view in told.answers.items()}
    address = next((text for one in configs.values() if (text := one.get("ha.address", "none")) != "none"), "")
    if address:
        holders = [name for name, one in configs.items() if verify.HOLDS in one]
        yield f"service address: {address} is on {' and '.join(holders) or 'no head'}"
    for name, one in configs.items():
        if verify.PROGRAMS in one:
            yield f"programs on {name}: {one[verify.PROGRAMS]}"


def promise(told: Fare) -> str:
    """What an acknowledgement means at present."""
    one = told.primary
    if one is None:
        waits = next((view.why for view in told.answers.values() if view.why), "")
        return "nobody acts: nothing is taken, and what runs goes on" + (f"; {waits}" if waits else "")
    if len(told.heads) < 2:
        return f"one head: what is acknowledged is on the disk of {one.name}, and nobody takes over from it"
    other = next(name for name in told.heads if name != one.name)
    if not one.in_step:
        why = f" ({one.why})" if one.why else ""
        return (
            f"{one.name} is alone{why}: what is acknowledged is on its disk only, and {other} can't take over "
            "before it has all of it"
        )
    match one.level:
        case "A":
            behind = max(0, one.last - one.match)
            return (
                f"level A: what is acknowledged is on the disk of {one.name}; {other} follows, {behind} entries "
                "behind: with the primary's machine the newest may be lost"
            )
        case "B":
            return (
                f"level B: what is acknowledged is on the disk of {one.name} and has been received by {other}: "
                "it is lost only if both fail at once"
            )
    return "level C: what is acknowledged is on both disks: whichever machine dies, nothing of it is lost"


def takeover(told: Fare) -> str:
    """What happens when the primary dies."""
    one = told.primary or next(iter(told.answers.values()))
    if one.frozen:
        return "take-over is frozen: nobody follows the primary until 'beo ha thaw'"
    if one.takeover == "manual":
        return "take-over is manual: if the primary dies, 'beo ha takeover' lets the other head act"
    back = "; A gets its role back when it is in step again" if one.failback else ""
    return f"take-over is automatic, {one.lease_s:g} s after the primary's last sign of life{back}"


def voters(found: Sequence[ms.VoterView], heads: Iterable[str]) -> str:
    """Who says which head goes on, when the other one is silent."""
    voting = [voter for voter in found if voter.votes]
    cure = "start workers, or 'beo witness' on a third machine"
    if not voting:
        return f"no voter: a head that loses the other one can't go on: {cure}"
    for voter in voting:
        if voter.voter.startswith(HOLDER):
            holder = voter.voter.removeprefix(HOLDER)
            other = next((name for name in heads if name != holder), "the other")
            return f"no voter but {holder} itself: {other} can't go on without it before an operator says so: {cure}"
    alive = [voter for voter in voting if 0 <= voter.silent_s <= VOTER_SILENT_S]
    nodes = sorted({voter.node for voter in voting if not voter.node.startswith(WITNESS)})
    witnesses = sorted({voter.node for voter in voting if voter.node.startswith(WITNESS)})
    names = ", ".join([*([nodeset.fold(nodes)] if nodes else []), *witnesses])
    return f"voters: {names}; {len(alive)} of {len(voting)} answer"


def measured(view: ms.PairIs, now_s: float) -> str:
    """How much of the time somebody acted since the cluster was born."""
    age_s = max(1.0, now_s - view.born_s)
    up = availability(view, now_s)
    count = f"{view.takeovers} take-over{'s' * (view.takeovers != 1)}"
    down = f"{view.down_s:.1f} s" if view.down_s < 100 else units.format_duration(int(view.down_s))
    return (
        f"measured: a head acted {up * 100:.3f} % of {units.format_duration(int(age_s))} (down {down} in all), {count}"
    )


def availability(view: ms.PairIs, now_s: float) -> float:
    """The part of the time since its birth in which the cluster had a head that acted."""
    return max(0.0, 1.0 - view.down_s / max(1.0, now_s - view.born_s))


def findings(told: Fare) -> list[str]:
    """What is wrong, each with the head that found it."""
    found = [f"{name}: {text}" for name, view in told.answers.items() for text in view.findings]
    for name, view in told.answers.items():
        if view.orphans:
            entries = f"{view.orphans} entr{'y' if view.orphans == 1 else 'ies'}"
            found.append(f"{name}: {entries} of it the cluster does not have: see 'beo ha orphans' there")
    return found + [f"{name}: {why}" for name, why in told.silent.items()]

"""What of a cluster is still single: what may end, by itself, and take the service with it. Pure.

A *single* is one thing whose end, with everything else in order, loses acknowledged jobs, stops the cluster until a
person comes, or leaves its users without what they were promised.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from beo import messages as ms

VOTER_SILENT_S = 5.0  # who has been silent for longer is no help in an election
HOLDER = "holder/"  # so begins the vote of a head that has no other voter: its own, once more
PREFIX_DOTS = 3  # of an IPv4 address: those of one /24 are taken to hang on one switch


class Head(NamedTuple):
    """A head: the machine that it is on, its rack ("": not known), the networks that it is reached by.

    up: it answers. address and programs: what it tells of [ha] address and on_promote in its beo.toml; "" or none.
    """

    name: str
    host: str
    rack: str = ""
    networks: frozenset[str] = frozenset()
    up: bool = True
    address: str = ""
    programs: str = ""


class Voter(NamedTuple):
    """A voter whose vote counts, and where it is ("": not known)."""

    name: str
    host: str = ""
    rack: str = ""
    alive: bool = True


class Site(NamedTuple):
    """A cluster, as far as it matters here. workers: the machines that run jobs, by their hosts."""

    heads: tuple[Head, ...]
    voters: tuple[Voter, ...] = ()
    workers: tuple[str, ...] = ()
    in_step: bool = True
    level: str = "C"
    takeover: str = "automatic"
    frozen: bool = False


class Single(NamedTuple):
    """One of them: what it is, what its end does, and what would make two of it."""

    what: str
    why: str
    cure: str

    def __str__(self) -> str:
        """`one head: with it goes …: join a second one …`"""
        return f"{self.what}: {self.why}: {self.cure}"


def singles(site: Site) -> list[Single]:
    """Return what is single; the exit code of `beo ha spof` is how many there are."""
    found = list(_heads(site))
    if len(site.heads) > 1:
        found += [*_pair(site), *_votes(site), *_network(site), *_service(site)]
    return [*found, *_workers(site)]


def _heads(site: Site) -> Iterator[Single]:
    if len(site.heads) < 2:
        yield Single("one head", "with it end the queue and all that is promised", "join a second: 'beo head join'")
        return
    hosts = {head.host for head in site.heads if head.host}
    if len(hosts) == 1:
        (host,) = hosts
        yield Single(f"the machine {host}", "both heads are on it", "put one of them on another machine")
    for head in site.heads:
        if not head.up:
            (other, *_) = (one.name for one in site.heads if one is not head)
            yield Single(f"head {other}", f"head {head.name} does not answer", "see 'beo ha status', and start it")


def _pair(site: Site) -> Iterator[Single]:
    up = all(head.up for head in site.heads)
    if up and not site.in_step:
        yield Single(
            "the primary's disk", "the standby is not in step yet", "wait for it: 'beo ha status' shows how far"
        )
    if site.level == "A":
        why = "at level A the newest jobs that were acknowledged are on it alone"
        yield Single("the primary's disk", why, "'beo ha set --level C', or 'B'")
    if site.frozen:
        yield Single("the primary", "take-over is frozen, so nobody follows it", "'beo ha thaw'")
    elif site.takeover == "manual":
        yield Single("the operator", "nobody else lets the standby take over", "'beo ha set --takeover automatic'")


def _votes(site: Site) -> Iterator[Single]:
    """Whom the end of one machine, or of one rack, leaves without a head that may go on."""
    if not site.voters:
        why = "who is alone can't tell the other's end from a cut cable, and there is no voter to ask"
        yield Single("either head", why, "start workers, or 'beo witness' on a third machine")
        return
    alive = [voter for voter in site.voters if voter.alive]
    if not _is_majority(len(alive), site):
        why = f"{len(alive)} of {len(site.voters)} voters answer, and it takes more than half"
        yield Single("either head", why, "start them again, or others: they are exchanged when both heads are in step")
        return
    for kind, places in (("machine", _hosts(site)), ("rack", _racks(site))):
        for place, (heads, voters) in sorted(places.items()):
            left = [head for head in site.heads if head.name not in heads]
            if len(heads) != 1 or not left or _is_majority(len(alive) - len(voters), site):
                continue  # without a head in it, both heads go on; with both of them it was told before
            why = f"with head {heads[0]} go {len(voters)} of {len(alive)} votes ({', '.join(voters)})"
            yield Single(
                f"the {kind} {place}", f"{why}, and {left[0].name} can't go on", f"have voters in another {kind}"
            )
    known = {voter.rack for voter in alive}
    if len(alive) > 1 and len(known) == 1 and known != {""} and not any(head.rack for head in site.heads):
        (rack,) = known
        yield Single(f"the rack {rack}", "all voters are in it, and perhaps a head", "have workers in another rack")


def _is_majority(count: int, site: Site) -> bool:
    return 2 * count > len(site.voters)


def _hosts(site: Site) -> dict[str, tuple[list[str], list[str]]]:
    return _places(
        [(head.host, head.name) for head in site.heads],
        [(voter.host, voter.name) for voter in site.voters if voter.alive],
    )


def _racks(site: Site) -> dict[str, tuple[list[str], list[str]]]:
    return _places(
        [(head.rack, head.name) for head in site.heads],
        [(voter.rack, voter.name) for voter in site.voters if voter.alive],
    )


def _places(
    heads: Sequence[tuple[str, str]], voters: Sequence[tuple[str, str]]
) -> dict[str, tuple[list[str], list[str]]]:
    """Return, for each place with a head, the heads and the voters there."""
    found: dict[str, tuple[list[str], list[str]]] = {place: ([], []) for place, _ in heads if place}
    for side, members in enumerate((heads, voters)):
        for place, name in members:
            if place in found:
                found[place][side].append(name)
    return found


def _network(site: Site) -> Iterator[Single]:
    """The switch: where all ways between the heads are in one network."""
    if len({head.host for head in site.heads}) < 2:
        return  # on one machine there is none
    shared = frozenset.intersection(*(head.networks for head in site.heads))
    if len(shared) == 1:
        (network,) = shared
        why = "all ways between the heads are in it, so its switch ends replication and what workers report"
        yield Single(f"the network {network}", why, "connect the heads by a second one, and name it in [ha] links")


def _service(site: Site) -> Iterator[Single]:
    one, other = site.heads[:2]
    for key, what in (("address", "the service address"), ("programs", "the programs of on_promote")):
        mine, theirs = (_told(getattr(head, key)) for head in (one, other))
        if bool(mine) != bool(theirs) and one.up and other.up:
            there, not_there = (one, other) if mine else (other, one)
            why = f"head {not_there.name} has no such setting, so {what} would not follow"
            yield Single(f"head {there.name}", why, f"copy [ha] of beo.toml to head {not_there.name}")
    if any(_told(head.programs) for head in site.heads) and not any(_told(head.address) for head in site.heads):
        why = "programs of on_promote move to the other head, and who uses them goes on asking this one"
        yield Single("the primary's address", why, "set [ha] address on both heads")


def _told(text: str) -> str:
    return "" if text == "none" else text


def _workers(site: Site) -> Iterator[Single]:
    if not site.workers:
        yield Single("nobody", "no worker is up, so no job runs", "start one: 'beo worker'")
    elif len(set(site.workers)) == 1:
        yield Single(
            f"the worker {site.workers[0]}", "all jobs run on this machine", "add one: 'beo token', 'beo worker'"
        )


def site_of(view: ms.PairIs, other: ms.PairIs | None, nodes: Sequence[ms.NodeView], racks: Mapping[str, str]) -> Site:
    """Return the site that two heads' answers and the list of nodes describe.

    view: of a head that answered, the primary where there is one. other: of the other one, None where it is silent.
    racks: of the heads, by their hosts, where known.
    """
    hosts = {node.name: _host(node.address) for node in nodes}
    answers = {found.name: found for found in (view, other) if found}
    heads = []
    for head in view.heads:
        host, answer = _host(head.control), answers.get(head.name)
        networks = frozenset(_network_of(_host(link)) for link in head.links or (head.control,))
        config = answer.config if answer else {}
        up, has = answer is not None, (config.get("ha.address", ""), config.get("ha.on_promote", ""))
        heads.append(Head(head.name, host, racks.get(host, ""), networks, up, *has))
    voters = tuple(
        Voter(voter.node, hosts.get(voter.node, ""), voter.rack, 0 <= voter.silent_s <= VOTER_SILENT_S)
        for voter in view.voters
        if voter.votes and not voter.voter.startswith(HOLDER)
    )
    workers = tuple(sorted(hosts[node.name] for node in nodes if node.state in ("up", "draining", "drained")))
    return Site(tuple(heads), voters, workers, view.in_step, view.level, view.takeover, view.frozen)


def _host(address: str) -> str:
    return address.rpartition(":")[0] or address


def _network_of(host: str) -> str:
    parts = host.split(".")
    return ".".join([*parts[:PREFIX_DOTS], "0"]) + "/24" if len(parts) == PREFIX_DOTS + 1 else host

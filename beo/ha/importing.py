"""What beo makes of Heartbeat's files: settings, and for each line what became of it. Nothing is dropped in silence."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

import msgspec

from beo.errors import nearest
from beo.ha import heartbeat
from beo.ha.heartbeat import Line, Resource, Source
from beo.settings import PAIR_LEASE_MIN_S, HaConfig

LEASE_MAX_S = 60.0
SILENCE_OF_LEASE = 2 / 3  # as of the defaults: the standby is given up before the lease ends
PROGRAM_HOME = "/etc/init.d"  # where a script is looked for in the end

# Directives of ha.cf that nothing in beo corresponds to, and why.
LEFT = {
    "keepalive": "the heads tell each other several times within lease_s that they live",
    "warntime": "'beo ha status' shows how far the standby is behind",
    "initdead": "heads that start together settle who acts; after a power cut both are waited for",
    "deadping": "there are no ping nodes",
    "udpport": "the heads use the ports beside the one of [head] listen",
    "serial": "there is no serial link: a second network is named in [ha] links",
    "baud": "there is no serial link",
    "hopfudge": "there is no ring of serial links",
    "ping": "the workers have votes: whom they see goes on",
    "ping_group": "the workers have votes: whom they see goes on",
    "hbaping": "the workers have votes: whom they see goes on",
    "stonith": "nothing is switched off: who can't be heard has no lease, and acts no more",
    "stonith_host": "nothing is switched off: who can't be heard has no lease, and acts no more",
    "watchdog": "a head that hangs has no lease, and the kernel takes the address from it",
    "logfile": "the log of the head is log/head.log in its folder",
    "debugfile": "the log of the head is log/head.log in its folder",
    "logfacility": "the log of the head is log/head.log in its folder",
    "syslogmsgfmt": "the log of the head is log/head.log in its folder",
    "use_logd": "the log of the head is log/head.log in its folder",
    "conn_logd_time": "the log of the head is log/head.log in its folder",
    "debug": "there are no degrees of talkativeness",
    "apiauth": "who may speak with a head is told by keys: 'beo token'",
    "respawn": "the supervisor starts what beo needs again; a program of yours is an [[ha.on_promote]] with run",
    "realtime": "the loop of a head never waits for a disk, and needs no realtime",
    "rtprio": "the loop of a head never waits for a disk, and needs no realtime",
    "memreserve": "the loop of a head never waits for a disk, and needs no realtime",
    "msgfmt": "beo's messages have one format",
    "traditional_compression": "beo's messages are small",
    "compression": "beo's messages are small",
    "compression_threshold": "beo's messages are small",
    "coredumps": "set it by ulimit where the supervisor is started",
    "autojoin": "machines join with a token",
    "cluster": "a cluster has an id of its own",
    "hbgenmethod": "epochs are on both heads' disks",
    "uuidfrom": "heads are called A and B",
    "crm": "beo places jobs itself; resources of Pacemaker are not carried over",
}
NETWORKS = ("bcast", "udp", "mcast", "ucast")
TAKEN = ("deadtime", "nice_failback", "auto_failback", "node", *NETWORKS)

# Resources that move a disk, or parts of one: in beo each head has its own, so none moves.
DISKS = {"datadisk", "drbddisk", "drbdupper", "drbdlinks", "Filesystem", "LVM", "Raid1", "ServeRAID", "ICP"}
DISK_LEFT = "no disk moves, each head has its own: keep the files that a program needs on both"
DRBD_LEFT = "no disk is copied block by block: beo's heads copy what is theirs, each to its own disk"
DRBD_KEYS = {"MASTER_NODE", "SLAVE_NODE", "MASTER_IF", "SLAVE_IF", "OPTIONS", "PROTOCOL", "MASTER_DEVICE"}
DRBD_KEYS |= {"SLAVE_DEVICE", "MASTER_PARTITION", "SLAVE_PARTITION"}

Kind = Literal["taken", "left", "warning"]
Finder = Callable[[str], tuple[str, ...]]
"""From the name of a resource's script to the words that call it, without its arguments; () where there is none."""


class Note(NamedTuple):
    """What became of a line: it was taken, or left as there is nothing like it, or something is wrong with it."""

    kind: Kind
    where: str
    shown: str
    told: str

    def __str__(self) -> str:
        """`warning ha.cf:7: nonsense: what it means`"""
        quoted = f": {self.shown}" if self.shown else ""
        return f"{self.kind:<7} {self.where}{quoted}: {self.told}"


class Imported(NamedTuple):
    """What came of it."""

    config: HaConfig
    notes: list[Note]
    origins: dict[str, str]  # of which line each setting is

    @property
    def warnings(self) -> list[Note]:
        """What is to be looked at."""
        return [note for note in self.notes if note.kind == "warning"]


class _Import:
    """One import under way: settings as they come, and a note for each line."""

    def __init__(self, find: Finder) -> None:
        self._find = find
        self.settings: dict[str, object] = {}
        self.origins: dict[str, str] = {}
        self.notes: list[Note] = []
        self.programs: list[dict[str, object]] = []
        self.nodes: list[str] = []
        self.interface = ("", "")  # the first one that ha.cf names, and where

    def note(self, kind: Kind, line: Line, told: str, shown: str | None = None) -> None:
        self.notes.append(Note(kind, line.where, line.shown if shown is None else shown, told))

    def take(self, line: Line, key: str, value: object, remark: str = "") -> None:
        """Set a setting; said again with another value, the last counts, as it does with Heartbeat."""
        if key in self.settings and self.settings[key] != value:
            self.note("warning", line, f"{key} was {_toml(self.settings[key])} by {self.origins[key]}: this one counts")
        self.settings[key], self.origins[key] = value, line.where
        self.note("taken", line, f"{key} = {_toml(value)}" + (f": {remark}" if remark else ""))

    # ha.cf

    def ha_cf(self, source: Source) -> None:
        for line in heartbeat.lines(source):
            try:
                self._directive(line)
            except ValueError as error:
                self.note("warning", line, f"{error}: beo's own setting stays")
        if len(self.nodes) > 2:
            told = f"{len(self.nodes)} nodes: beo has two heads, so {', '.join(self.nodes[2:])} can be workers"
            self.notes.append(Note("warning", source.path, "", told))

    def _directive(self, line: Line) -> None:
        key, rest = line.key.lower(), line.rest
        if key in ("deadtime", "nice_failback", "auto_failback", "node", *NETWORKS) and not rest:
            raise ValueError(f"{key} says nothing")
        match key:
            case "deadtime":
                self._deadtime(line)
            case "nice_failback":
                why = "it is on: who has been away comes back as the standby"
                nice = heartbeat.is_on(rest[0])
                self.take(line, "failback", not nice, why if nice else "it is off: the first head takes over again")
            case "auto_failback" if rest[0].lower() == "legacy":
                self.take(line, "failback", True, "legacy means that the first head takes over again")
            case "auto_failback":
                self.take(line, "failback", heartbeat.is_on(rest[0]))
            case "node":
                for name in rest:
                    head = "AB"[len(self.nodes)] if len(self.nodes) < 2 and name not in self.nodes else ""
                    self.nodes += [name] if name not in self.nodes else []
                    self.note("left", line, f"{name} is to be head {head}" if head else f"{name} is no head of beo's")
            case _ if key in NETWORKS:
                self._network(line)
            case _ if key in LEFT:
                self.note("left", line, LEFT[key])
            case _ if key.startswith("/"):
                meant = "debugfile" if "debug" in key else "logfile"
                self.note("warning", line, f"a path without its keyword, {meant} is likely: {LEFT[meant]}")
            case _:
                near = nearest(key, [*TAKEN, *LEFT])
                hint = f"did you mean {' or '.join(near)}?" if near else "Heartbeat has no such word"
                self.note("warning", line, f"not understood: {hint}")

    def _deadtime(self, line: Line) -> None:
        wanted_s = heartbeat.duration_s(line.rest[0])
        lease_s = min(max(wanted_s, PAIR_LEASE_MIN_S), LEASE_MAX_S)
        if lease_s != wanted_s:
            self.note("warning", line, f"beo's limits are {PAIR_LEASE_MIN_S:g} and {LEASE_MAX_S:g} s")
        default = HaConfig().lease_s
        remark = f"without it beo takes {default:g} s" if lease_s > default else ""
        self.take(line, "lease_s", lease_s, remark)
        self.take(line, "silence_s", round(max(lease_s * SILENCE_OF_LEASE, 0.05), 3))

    def _network(self, line: Line) -> None:
        """`bcast eth0 eth1`, `udp eth0`, `mcast eth0 GROUP ...`, `ucast eth0 ADDRESS`."""
        names = line.rest if line.key.lower() in ("bcast", "udp") else line.rest[:1]
        for name in names:
            if not self.interface[0]:
                self.interface = name, line.where
                self.note("left", line, f"the heads meet at [head] listen; the service address goes to {name}, too")
            elif name != self.interface[0]:
                told = f"a second network: name this machine's address on {name} in [ha] links"
                self.note("warning", line, told)
            else:
                self.note("left", line, "the heads meet at [head] listen")

    # haresources

    def haresources(self, source: Source) -> None:
        groups = heartbeat.lines(source)
        for line in groups:
            if self.nodes and line.key not in self.nodes:
                self.note("warning", line, f"{line.key} is no node of ha.cf")
            for resource in heartbeat.resources(line):
                self._resource(resource)
            if not line.rest:
                self.note("warning", line, "no resources")
        if len({line.key for line in groups}) > 1:
            told = "resources of several nodes: in beo all of them are where the primary is"
            self.note("warning", groups[-1], told)
        said = {line.words for line in groups}
        for comment in heartbeat.comments(source):
            # Told in a comment what the other node's file has: but the files must be the same.
            if comment.key in self.nodes and len(comment.words) > 1 and comment.words not in said:
                self.note("warning", comment, _differ(f"{comment.key} has other resources", groups))

    def _resource(self, resource: Resource) -> None:
        name, line = resource.name, resource.line
        if name in ("IPaddr", "IPaddr2"):
            self._address(resource)
        elif name in DISKS:
            self.note("left", line, f"{name}: {DISK_LEFT}")
        elif name in ("IPsrcaddr", "IPv6addr"):
            self.note("warning", line, f"{name} is not carried over: beo has one service address, of IPv4")
        else:
            self._program(resource)

    def _address(self, resource: Resource) -> None:
        line, told = resource.line, resource.arguments[0] if resource.arguments else ""
        if "address" in self.settings:
            self.note("warning", line, f"{told} is not carried over: beo has one service address")
            return
        try:
            found = heartbeat.address(told)
            msgspec.convert({"address": found.address, "interface": found.interface}, HaConfig)
        except ValueError as error:  # of ipaddress and of msgspec
            self.note("warning", line, f"no service address: {str(error).partition(' - at ')[0]}")
            return
        remark = "it must be no machine's own" + ("" if "/" in found.address else ", and gets its network's prefix")
        self.take(line, "address", found.address, remark)
        interface, where = (found.interface, line.where) if found.interface else self.interface
        if interface:
            self.settings["interface"], self.origins["interface"] = interface, where

    def _program(self, resource: Resource) -> None:
        name, line = resource.name, resource.line
        title = name.rpartition("/")[2] or name
        taken = sum(str(program["name"]).partition("#")[0] == title for program in self.programs)
        words = self._find(name)
        if not words:
            words = (name if name.startswith("/") else f"{PROGRAM_HOME}/{name}",)
            self.note("warning", line, f"there is no script {name} on this machine: say in beo.toml what starts it")
        if words[:1] == ("systemctl",):
            start, stop = (*words[:1], "start", *words[1:]), (*words[:1], "stop", *words[1:])
        else:
            start, stop = ((*words, *resource.arguments, verb) for verb in ("start", "stop"))
        unique = f"{title}#{taken + 1}" if taken else title
        self.programs.append({"name": unique, "start": start, "stop": stop})
        self.note("taken", line, f"on_promote {unique}: {' '.join(start)}")

    # authkeys

    def authkeys(self, source: Source) -> None:
        numbers: dict[str, Line] = {}
        chosen: Line | None = None
        for line in heartbeat.lines(source):
            if line.key == "auth" and len(line.words) == 2:
                chosen = line
                self.note("left", line, "the heads know each other by the cluster's own key")
            elif line.key.isdigit() and 2 <= len(line.words) <= 3 and line.words[1].lower() in heartbeat.METHODS:
                numbers[line.key] = line
                self.note("left", line, "beo's keys are made by beo", heartbeat.hidden(line))
                if weak := heartbeat.weakness(line.words[1].lower(), "".join(line.words[2:])):
                    self.note("warning", line, weak, heartbeat.hidden(line))
            else:
                told = "not understood: it should be auth NUMBER, or NUMBER METHOD KEY"
                self.note("warning", line, told, heartbeat.hidden(line))
        if chosen and chosen.rest[0] not in numbers:
            self.note("warning", chosen, f"there is no key {chosen.rest[0]}")

    # drbd

    def drbd(self, source: Source) -> None:
        for line in heartbeat.lines(source):
            if found := heartbeat.assignment(line):
                self._drbd_setting(line, *found)
            else:
                word, values = heartbeat.statement(line)
                if word == "protocol" and values:
                    self._protocol(line, values[0])
                else:
                    self.note("left", line, DRBD_LEFT)

    def _drbd_setting(self, line: Line, key: str, value: str) -> None:
        if key == "PROTOCOL":
            self._protocol(line, value)
        elif key in ("MASTER_NODE", "SLAVE_NODE"):
            name = value.partition(":")[0]
            self.note("left", line, f"{name} is a node" if name in self.nodes else DRBD_LEFT)
            if self.nodes and name not in self.nodes:
                self.note("warning", line, f"{name or 'nobody'} is no node of ha.cf")
        elif key in DRBD_KEYS:
            self.note("left", line, DRBD_LEFT if value else "it says nothing")
        else:
            near = nearest(key, DRBD_KEYS)
            self.note(
                "warning", line, f"not understood: {f'did you mean {near[0]}?' if near else 'DRBD has no such word'}"
            )

    def _protocol(self, line: Line, value: str) -> None:
        level = value.upper()
        if level not in ("A", "B", "C"):
            self.note("warning", line, f"{value or 'nothing'} is no protocol: beo's own level stays")
            return
        remarks = {
            "A": "what the standby had not received yet is lost when the primary dies; with C nothing is",
            "B": "nothing is lost when one machine dies; with C nothing is when both lose power, either",
        }
        self.take(line, "level", level, remarks.get(level, ""))


def convert(nodes: Sequence[Sequence[Source]], find: Finder) -> Imported:
    """Return what beo makes of the files of one node or several; where they differ, the first node's count."""
    work = _Import(find)
    first = list(nodes[0]) if nodes else []
    for kind in heartbeat.KINDS:  # ha.cf first: it has the names of the nodes
        for source in (one for one in first if one.kind == kind):
            getattr(work, kind.replace(".", "_"))(source)
    for other in nodes[1:]:
        work.notes += _compared(first, list(other))
    settings = {**work.settings, **({"on_promote": work.programs} if work.programs else {})}
    return Imported(msgspec.convert(settings, HaConfig), work.notes, work.origins)


def _compared(first: list[Source], other: list[Source]) -> Iterator[Note]:
    """Where another node's files say something else than the first one's: Heartbeat's must be the same on all nodes."""
    for source in other:
        twin = next((one for one in first if one.kind == source.kind and _name(one) == _name(source)), None)
        if twin is None:
            yield Note("warning", source.path, "", f"the first node has no {_name(source)}: this one is not used")
            continue
        ours, theirs = heartbeat.lines(twin), heartbeat.lines(source)
        said = {line.words for line in ours}
        hide = source.kind == "authkeys"
        for line in theirs:
            if line.words not in said:
                shown = heartbeat.hidden(line) if hide else line.shown
                yield Note(
                    "warning", line.where, shown, _differ(f"{twin.path} says otherwise", ours if not hide else [])
                )
        told = {line.words for line in theirs}
        for line in ours:
            if line.words not in told:
                shown = heartbeat.hidden(line) if hide else line.shown
                yield Note("warning", line.where, shown, f"{source.path} has no such line: this one counts")


def _differ(what: str, ours: list[Line]) -> str:
    counts = f": line {', '.join(str(line.number) for line in ours)} counts" if ours else ""
    return f"{what}, but the file must be the same on both nodes{counts}"


def _name(source: Source) -> str:
    return source.path.rpartition("/")[2]


def toml(imported: Imported, sources: Sequence[str]) -> str:
    """Return beo.toml, with the line of Heartbeat's files behind each setting."""
    written = [f"# Made by 'beo ha import' of {', '.join(sources)}.", "", "[ha]"]
    values = msgspec.to_builtins(imported.config)
    for key in HaConfig.__struct_fields__:
        if key in imported.origins:
            written.append(f"{f'{key} = {_toml(values[key])}':<30} # {imported.origins[key]}")
    for program in imported.config.on_promote:
        written += ["", "[[ha.on_promote]]", f"name = {_toml(program.name)}"]
        written += [f"{key} = {_toml(list(program.words(key)))}" for key in ("start", "stop")]
    return "\n".join(written) + "\n"


def _toml(value: object) -> str:
    """A text, a number, a truth or a list of texts as TOML has it: JSON is the same there, but for one character."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")

"""What a machine runs when it has booted from a head: it joins, and becomes a worker. ``python -m beo.boot.join``

The kernel's command line says where the heads are, by which public key they are known (beo.pin), and which machine this
is. Nothing there is secret, and nor is what is said over HTTP: the machine makes a key in its memory, says the public
half until a head has let it in, and asks that head for all the rest over a connection that only the pinned key can
answer. So whoever plays the head can keep this machine out, and no more.

It does not look at its own clock, which may be a year off, and takes the head's.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from beo import birth, local, machines, question, wire
from beo import messages as ms
from beo.boot.console import Console
from beo.boot.desk import pin_of, read_error
from beo.config import SECRET_LENGTH as KEY_LENGTH
from beo.config import Home, home, is_address
from beo.errors import BeoError, Conflict, NoHead, TimedOut, UsageError, reason
from beo.proof import mac_of, prove, tag_key
from beo.worker import probe

COMMAND_LINE = "/proc/cmdline"
TAGS = ("chassis_asset_tag", "board_asset_tag", "product_serial")  # the first that says something is the asset tag
NO_TAGS = frozenset({"", "none", "default string", "to be filled by o.e.m.", "not specified", "no asset tag"})
WORDS = ("heads", "boot", "pin", "mac", "ip", "name")
DMI = "/sys/class/dmi/id"
ANSWER_S = 5.0  # of the server of boots, which waits for its head for 3
ANSWER_MAX_BYTES = 64 * 1024
PAUSE_S = 2.0  # before a question that is still open is asked again
PAUSE_MAX_S = 10.0  # before one that was refused: an operator may have changed his mind
PORTS = range(600, 1_024)  # only root may ask from these
PORT_TRIES = 20
CLOCK_OFF_S = 1.0


class Words(msgspec.Struct, frozen=True):
    """What the kernel's command line says of beo. heads, boots: host:port each. ip: with its prefix: 10.0.0.9/24."""

    heads: tuple[str, ...]
    boots: tuple[str, ...]
    pin: str
    mac: str
    ip: str = ""
    name: str = ""


def read_words(text: str, over: Mapping[str, str] | None = None) -> Words:
    """Read the words `beo.NAME=VALUE` of a command line; `over` has what is to be said otherwise."""
    said = dict(word.removeprefix("beo.").partition("=")[::2] for word in text.split() if word.startswith("beo."))
    said |= {name: value for name, value in (over or {}).items() if value}
    cure = "boot this machine with the script that the head serves"
    for name in ("heads", "boot", "pin", "mac"):
        if not said.get(name):
            raise UsageError(f"the kernel's command line has no beo.{name}", "", cure)
    heads, boots = (tuple(filter(None, said[name].split(","))) for name in ("heads", "boot"))
    if not all(map(is_address, (*heads, *boots))):
        raise UsageError("beo.heads or beo.boot is no list of addresses", "each is HOST:PORT", cure)
    pin = pin_of(said["pin"])
    if len(pin) != KEY_LENGTH:
        raise UsageError("beo.pin is no key", f"it has {KEY_LENGTH} characters of Z85, or 64 hex digits", cure)
    return Words(heads, boots, pin, mac_of(said["mac"]), said.get("ip", ""), said.get("name", ""))


def find_tag(folder: str = DMI) -> str:
    """This machine's asset tag, as its firmware says it; "" where that says nothing."""
    for name in TAGS:
        with suppress(OSError, UnicodeDecodeError):
            text = Path(folder, name).read_text().strip()
            if text.lower() not in NO_TAGS:
                return text
    return ""


# ---- asking --------------------------------------------------------------------------------------------------------


def _connect(address: str, is_root: bool) -> http.client.HTTPConnection:
    """Connect, from one of root's ports where this is root."""
    host, _, port = address.rpartition(":")
    sources = random.sample(PORTS, PORT_TRIES) if is_root else [0]
    for source in sources:
        connection = http.client.HTTPConnection(
            host, int(port), timeout=ANSWER_S, source_address=("", source) if source else None
        )
        try:
            connection.connect()
        except PermissionError:  # root of a namespace that doesn't own this network
            return _connect(address, False)
        except OSError as error:
            if "in use" not in reason(error):
                raise
            continue
        return connection
    return _connect(address, False)


def post(address: str, path: str, body: bytes, is_root: bool = False) -> bytes:
    """Post to a server of boots and return its answer; raises the error that it answers with, or NoHead."""
    try:
        connection = _connect(address, is_root)
        try:
            connection.request("POST", path, body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            answer = response.read(ANSWER_MAX_BYTES)
        finally:
            connection.close()
    except (OSError, http.client.HTTPException) as error:
        raise NoHead(f"no server of boots answers at {address}", reason(error), "see 'beo boot serve' there") from None
    if response.status >= http.client.BAD_REQUEST:
        raise read_error(answer, response.status)
    return answer


class Joiner:
    """One boot of one machine, on its way in."""

    def __init__(
        self,
        where: Home,
        words: Words,
        boot: str,
        tag: Callable[[], str],
        tell: Callable[[str], object],
        set_clock: Callable[[float], object] | None = None,
    ) -> None:
        """Take the folder in which it will be a worker, and how it says what happens.

        set_clock: puts this machine's clock right, by seconds since 1970; None: it isn't ours to set.
        """
        self._home = where
        self._words = words
        self._boot = boot
        self._tag = tag
        self._tell = tell
        self._set_clock = set_clock
        self._told = ""
        birth.make_folder(where)
        if where.cluster_file.exists() and where.cluster().key != words.pin:
            cure = "set BEO_DIR to another folder"
            raise Conflict(f"{where.path} belongs to another cluster", "beo.pin is another head's key", cure)
        if not (where.keys / "worker.secret").exists():
            where.write_secret("worker", wire.new_keypair()[1])
        self._secret = where.secret("worker")
        self._key = wire.public_of(self._secret)

    def join(self, patience_s: float = float("inf")) -> ms.EnrolledIs:
        """Ask until a head has let this machine in, and write down what it says. Raises the last error after that."""
        deadline_s = time.monotonic() + patience_s
        asked = ms.JoinedIs("", "")
        pause_s = PAUSE_S
        while True:
            error: BeoError
            try:
                asked = self._ask(asked)
                if asked.state == "joined":
                    return self._settle(asked.node)
                if asked.state == "prove":
                    continue  # at once: what is to be proven holds for a minute
                error, pause_s = self._open(asked), PAUSE_S
            except BeoError as refusal:
                error, asked = refusal, ms.JoinedIs("", "")
                pause_s = min(PAUSE_MAX_S, pause_s * 2)
            self._say(str(error))
            if time.monotonic() + pause_s > deadline_s:
                raise error
            time.sleep(pause_s * random.uniform(0.8, 1.2))  # many machines boot at one time, after a power cut

    def _ask(self, asked: ms.JoinedIs) -> ms.JoinedIs:
        said = {"mac": self._words.mac, "boot": self._boot, "key": self._key}
        if asked.state == "prove":
            tag = self._tag()
            if not tag:
                cure = "'beo node set --policy approve', or set the tag in its firmware"
                raise UsageError("this machine's firmware knows no asset tag", f"see {DMI}", cure)
            secret = tag_key(self._words.mac, tag)
            proof = prove(secret, asked.nonce, self._words.mac, self._boot, self._key)
            said |= {"nonce": asked.nonce, "proof": proof}
        error: BeoError | None = None
        for address in self._words.boots:
            try:
                answer = post(address, "/join", json.dumps(said).encode(), os.geteuid() == 0)
                return _read(answer)
            except NoHead as silent:
                error = silent
        assert error
        raise error

    def _open(self, asked: ms.JoinedIs) -> BeoError:
        name = asked.node or self._words.name
        if asked.state == "pending":
            words = asked.words or "?"
            cure = f"compare the words with 'beo node pending', then 'beo node approve {name}'"
            return TimedOut(f"{name} waits for the operator: its words are  {words}", "", cure)
        return TimedOut(f"{name} has to wait", asked.why, "it goes on by itself")

    def _settle(self, node: str) -> ms.EnrolledIs:
        """Hear from the head itself, which only the pinned key can be, what there is to know; and write it down."""
        heads, pin = self._words.heads, self._words.pin
        place = question.ask(heads, pin, self._secret, ms.AskPlace(node), ms.EnrolledIs)
        self._right_clock(place.time_s - time.time())
        if not self._home.toml.exists() and place.settings:
            self._home.toml.write_text(place.settings)
        self._home.config()
        self._home.write_cluster(machines.cluster_file(place, heads[0], pin))
        return place

    def _right_clock(self, off_s: float) -> None:
        if abs(off_s) <= CLOCK_OFF_S:
            return
        if not self._set_clock:
            machines.check_clock(off_s, self._tell)
            return
        try:
            self._set_clock(time.time() + off_s)
            self._tell(f"the clock was {abs(off_s):.0f} s {'behind' if off_s > 0 else 'ahead of'} the head's: set")
        except OSError as error:
            self._tell(f"the clock is {abs(off_s):.0f} s off the head's, and can't be set ({reason(error)})")

    def _say(self, text: str) -> None:
        if text != self._told:
            self._told = text
            self._tell(text)


def _read(answer: bytes) -> ms.JoinedIs:
    try:
        said = msgspec.json.decode(answer, type=dict[str, str])
        found = ms.JoinedIs(**{name: said.get(name, "") for name in ms.JoinedIs.__struct_fields__})
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Conflict("the server of boots says what can't be read", reason(error), "see its log") from None
    if found.state not in ("joined", "pending", "prove", "wait"):
        raise Conflict("the server of boots is of another beo", f"it says {found.state[:20]!r}", "update the image")
    return found


def set_clock(time_s: float) -> None:
    """Set this machine's clock; raises OSError where it may not be set."""
    time.clock_settime(time.CLOCK_REALTIME, time_s)


def main(argv: Sequence[str] | None = None) -> int:
    """Join, and become this machine's supervisor of its worker; returns an exit code where that can't be."""
    parser = argparse.ArgumentParser("beo.boot.join", description="Join the cluster that this machine has booted from.")
    parser.add_argument("--cmdline", default="", help=f"words instead of those in {COMMAND_LINE}")
    for name in WORDS:
        parser.add_argument(f"--{name}", default="")
    parser.add_argument("--boot-id", default="", help="instead of the kernel's")
    parser.add_argument("--tag", default="", help="an asset tag instead of the firmware's")
    parser.add_argument("--slots", type=int, default=0)
    parser.add_argument("--said", action="append", default=[], help="a file with what the console has said until now")
    parser.add_argument("--patience", type=float, default=float("inf"))
    parser.add_argument("--set-clock", action="store_true", help="take the head's time")
    given = parser.parse_args(argv)
    console: Console | None = None
    try:
        text = given.cmdline or Path(COMMAND_LINE).read_text()
        words = read_words(text, {name: getattr(given, name) for name in WORDS})
        console = Console(words.boots, words.mac)
        for path in given.said:
            with suppress(OSError):
                console.keep(Path(path).read_bytes())
                os.truncate(path, 0)  # said once, however often this is started again
        tag = given.tag
        boot = given.boot_id or probe.boot_id()
        clock = set_clock if given.set_clock else None
        joiner = Joiner(home(), words, boot, lambda: tag or find_tag(), console.say, clock)
        place = joiner.join(given.patience)
        plan = local.Plan(1, given.slots or probe.cores(), serves=False, name=place.node)
        console.say(f"{place.node} has joined the cluster at {home().cluster().heads[0]}")
        console.follow()
        machines.stay(home(), plan)
    except BeoError as error:
        (console.say if console else print)(str(error))
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())

"""Machines that boot from the heads: what is on record of them, who may join, and their consoles."""

from __future__ import annotations

import msgspec

from beo.messages.form import Message

# ---- clients ask -----------------------------------------------------------------------------------------------------


class LeaseMachine(Message, frozen=True):
    """A machine with this MAC address asks for one to boot with: put it on record, if it isn't yet. → MachineIs"""

    mac: str
    hostname: str = ""  # as the machine calls itself; ""


class OpenMachine(Message, frozen=True):
    """This machine fetches its boot script, from this address: it is expected to join soon. → MachineIs"""

    mac: str
    address: str = ""


class JoinMachine(Message, frozen=True):
    """A machine that has booted wants its key to be authorized for its node. → JoinedIs, again and again

    boot: the kernel's boot id. peer: the host:port that it asks from. nonce and proof: what JoinedIs has asked for.
    """

    mac: str
    boot: str
    key: str
    peer: str
    nonce: str = ""
    proof: str = ""


class ListMachines(Message, frozen=True):
    """→ MachinesAre"""


class ApproveMachine(Message, frozen=True):
    """The operator's word that this key, whose words stand on its console, is that machine's. → MachineIs"""

    mac: str
    key: str


class SetMachine(Message, frozen=True):
    """Change what is on record of a machine, or put one on record; None leaves a value as it is. → MachineIs

    tag: what proof.tag_key has made of its asset tag.
    """

    mac: str
    name: str | None = None
    address: str | None = None
    image: str | None = None
    policy: str | None = None
    tag: str | None = None
    power: str | None = None


class ForgetMachine(Message, frozen=True):
    """Take a machine off the record. → Done"""

    mac: str


class AskConsole(Message, frozen=True):
    """What a machine's console has said from byte `after` on; -1: the last of it. → ConsoleIs"""

    mac: str
    after: int = -1


# ---- the head answers ------------------------------------------------------------------------------------------------


class MachineView(msgspec.Struct, frozen=True, array_like=True):
    """One row of `beo node list`. state: pending (the operator is asked), approved (it may join) or joined."""

    mac: str
    name: str
    address: str
    image: str
    policy: str
    state: str
    words: str  # of the key that waits, or by which it has joined
    key: str
    has_tag: bool
    power: str
    seen_s: float  # wall clock: when it last asked for anything; 0: never
    joined_s: float  # 0: never
    why: str = ""  # it doesn't join, where there is something to tell


class MachineIs(Message, frozen=True):
    """The machine as it is on record now, durably."""

    machine: MachineView


class MachinesAre(Message, frozen=True):
    """Rows in the order of their names."""

    machines: tuple[MachineView, ...]


class JoinedIs(Message, frozen=True):
    """→ JoinMachine. state: joined; pending (the operator is asked, who is shown words); prove (say HMAC of nonce);
    or wait (ask again soon).
    """

    state: str
    node: str
    words: str = ""
    nonce: str = ""
    why: str = ""


class ConsoleIs(Message, frozen=True):
    """→ AskConsole. after: what to go on with; begins: the byte with which data begins. head: whose count that is."""

    data: bytes
    begins: int
    after: int
    head: str = ""


MachineRequest = (
    LeaseMachine | OpenMachine | JoinMachine | ListMachines | ApproveMachine | SetMachine | ForgetMachine | AskConsole
)
MachineAnswer = MachineIs | MachinesAre | JoinedIs | ConsoleIs

"""Agents among themselves, on sockets of their own: who is alive, and what wardens say to each other."""

from __future__ import annotations

from beo.messages.form import Message


class Probe(Message, frozen=True):
    """Alive; sent between agents that share an attempt."""

    node: str
    incarnation: str


class Relay(Message, frozen=True):
    """A warden's message for the warden of the same attempt at another node; repeated until RelayAck."""

    node: str  # sender
    job: int
    attempt: int
    seq: int
    body: bytes  # JSON, as the warden made it


class RelayAck(Message, frozen=True):
    """The other warden has it."""

    node: str  # sender of the acknowledgement
    job: int
    attempt: int
    seq: int


AgentWord = Probe | Relay | RelayAck

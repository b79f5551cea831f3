"""What goes over the wire, both planes. Tagged msgspec structs, validated when they are decoded.

Frames of one message (behind a ROUTER's identity): a greeting (version.py), request id (8 bytes, big-endian; 0: nothing
is asked) and body. A peer of another protocol gets our greeting with an empty body, and nothing else happens.

Two planes, two sockets at the head: *control* (small, latency-bound: everything but output) and *bulk* (output and
stdin), so that a gigabyte of output never delays a heartbeat.

Each conversation has a file, with its messages and what they are made of, and below them who may say which: a new
message is written there and nowhere else. Everybody else reads them from here (`from beo import messages as ms`).
"""

from __future__ import annotations

from typing import Any, Generic, TypeVar

import msgspec

from beo.messages.agents import *
from beo.messages.bulk import *
from beo.messages.cluster import *
from beo.messages.form import *
from beo.messages.history import *
from beo.messages.jobs import *
from beo.messages.machines import *
from beo.messages.nodes import *
from beo.messages.peers import *
from beo.messages.processes import *
from beo.messages.reservations import *
from beo.messages.users import *
from beo.votes import Ballot, HeadQuestion, Present

_Body = TypeVar("_Body")

ClientRequest = (
    ClusterRequest
    | JobRequest
    | ProcessRequest
    | NodeRequest
    | ReservationRequest
    | UserRequest
    | MachineRequest
    | HistoryRequest
)
HeadAnswer = (
    Failed
    | Done
    | ClusterAnswer
    | JobAnswer
    | ProcessAnswer
    | NodesAre
    | ReservationsAre
    | UserAnswer
    | MachineAnswer
    | HistoryAnswer
)
VoterWord = Present | Ballot
ToHead = ClientRequest | AgentReport | VoterWord
ToAgent = HeadCommand | HeadQuestion | AgentWord | Elsewhere | Failed


class Reader(Generic[_Body]):
    """Reads the messages of one direction."""

    def __init__(self, kinds: Any) -> None:
        """Take the union of the messages that may come."""
        self._decoder: msgspec.msgpack.Decoder[_Body] = msgspec.msgpack.Decoder(kinds)

    def decode(self, data: bytes) -> _Body:
        """Decode and validate one message; raises msgspec.MsgspecError, whatever is wrong with the bytes."""
        try:
            return self._decoder.decode(data)
        except UnicodeDecodeError as error:
            raise msgspec.DecodeError(f"a text is not UTF-8: {error}") from None
        except RecursionError:  # lists in lists, where a later version has one more word
            raise msgspec.DecodeError("nested too deeply") from None


_encoder = msgspec.msgpack.Encoder()
encode = _encoder.encode
to_head: Reader[ToHead] = Reader(ToHead)
to_client: Reader[HeadAnswer] = Reader(HeadAnswer)
to_agent: Reader[ToAgent] = Reader(ToAgent)
bulk_to_head: Reader[BulkRequest] = Reader(BulkRequest)
bulk_from_head: Reader[BulkAnswer] = Reader(BulkAnswer)

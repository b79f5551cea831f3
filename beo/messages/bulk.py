"""The bulk plane: output and stdin, and the copying of output from head to head."""

from __future__ import annotations

import msgspec

from beo.messages.cluster import Elsewhere
from beo.messages.form import Failed, Message

CHUNK_SIZE_MAX_BYTES = 256 * 1024  # output in one message
STDIN_WINDOW_BYTES = 1024 * 1024  # stdin that a client may have under way, unacknowledged


# ---- output and stdin ------------------------------------------------------------------------------------------------


class Chunk(Message, frozen=True):
    """Output of a part: bytes of its spool from `offset` on, whole records. → ChunkAck"""

    node: str
    incarnation: str
    job: int
    attempt: int
    offset: int
    data: bytes


class ChunkAck(Message, frozen=True):
    """The head holds the spool durably up to `have`."""

    job: int
    attempt: int
    have: int


class Fetch(Message, frozen=True):
    """Output of an attempt from `cursor` on (0: the beginning); waits up to wait_s if there is none. → Fetched"""

    job: int
    attempt: int
    cursor: int
    wait_s: float
    limit_bytes: int = CHUNK_SIZE_MAX_BYTES


class Fetched(Message, frozen=True):
    """Records (see worker/warden.py) and the next cursor. end: the attempt is over and there is nothing behind."""

    cursor: int
    records: bytes
    end: bool


class Stdin(Message, frozen=True):
    """Input for rank 0 from `offset` on; eof: nothing follows these bytes. → StdinAck

    window: the present (rows, columns) of the client's terminal, which rank 0's takes over; (0, 0): there is none.
    """

    job: int
    attempt: int
    offset: int
    data: bytes
    eof: bool
    window: tuple[int, int] = (0, 0)


class StdinAck(Message, frozen=True):
    """Rank 0's node has taken `have` bytes; closed: it takes no more (the rank closed it or ended).

    window: the (rows, columns) that rank 0's terminal has now.
    """

    job: int
    attempt: int
    have: int
    closed: bool
    window: tuple[int, int] = (0, 0)


class BulkHello(Message, frozen=True):
    """An agent's first word on the bulk plane, repeated: stdin for this node goes to this connection."""

    node: str
    incarnation: str


# ---- two heads: the one that leads has the other keep the same files -------------------------------------------------


class Piece(msgspec.Struct, frozen=True, array_like=True):
    """Whole blocks of an attempt's file from byte `position` on; chain: of all blocks before (headnode/output.py).

    tail: the chain of the other's own end, whose file is longer and otherwise: what it has behind this goes. 0: none.
    """

    job: int
    attempt: int
    position: int
    chain: int
    data: bytes
    tail: int = 0


class Copy(Message, frozen=True):
    """The leader of this epoch has these blocks; several files in one message. → Copied"""

    epoch: int
    pieces: tuple[Piece, ...]


class Held(msgspec.Struct, frozen=True, array_like=True):
    """The other head's file is the leader's, durably, up to `have`.

    probes: its end, and places further and further back, each with the chain there. With them it is asked from where on
    the leader's is another; without, all is well. refused: why the leader's blocks are none.
    """

    job: int
    attempt: int
    have: int
    probes: tuple[tuple[int, int], ...] = ()
    refused: str = ""


class Copied(Message, frozen=True):
    """What copies came to. life: a number of this life of the other head. trouble: why its disk takes no more."""

    epoch: int
    life: int
    files: tuple[Held, ...]
    trouble: str = ""


class Offer(Message, frozen=True):
    """A page of what the leader has, as (job, attempt, size, chain); size -1: a file that is being copied. → Wanted

    Page 0 is empty: who is there? last: what the other has besides is nobody's.
    """

    epoch: int
    session: int
    page: int
    files: tuple[tuple[int, int, int, int], ...]
    last: bool = False


class Wanted(Message, frozen=True):
    """What of that page the other has otherwise, or not at all.

    exports: with page 0, the -o and -e files that it would go on with, as (job, attempt, "o" or "e"). → Exported
    """

    epoch: int
    life: int
    session: int
    page: int
    files: tuple[Held, ...]
    exports: tuple[tuple[int, int, str], ...] = ()


class Exported(Message, frozen=True):
    """These -o and -e files, as (job, attempt, "o" or "e"), are complete, or are given up: nobody is to write them."""

    epoch: int
    files: tuple[tuple[int, int, str], ...]


BulkRequest = Chunk | Fetch | Stdin | StdinAck | BulkHello | Copy | Offer | Exported
BulkAnswer = ChunkAck | Fetched | Stdin | StdinAck | Failed | Elsewhere | Copied | Wanted

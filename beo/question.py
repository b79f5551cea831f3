"""Ask heads one thing, from a program that is no client yet: whoever acts (`ask`), or all of them (`look`).

What is asked here may be asked again: an answer that was lost is simply asked for once more.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec

from beo import messages as ms
from beo import version, wire
from beo.errors import BeoError, NoHead, NotFound, Refused, from_dict

Answer = TypeVar("Answer")

PATIENCE_S = 10.0  # for whoever acts; a head that replays a long journal takes some seconds
CONNECT_S = 0.1  # for a connection, before another head is tried
ASK_AGAIN_S = 1.0
ELSEWHERE_S = 0.1  # between two questions while no head acts
LOOK_S = 1.0  # for all heads to say how they fare
PAUSE_S = 0.005  # between two looks at several connections


class _Line:
    """One connection, over which one thing is asked at a time."""

    def __init__(self, address: str, key: str, secret: str, context: Any) -> None:
        self.address = address
        self._connection = wire.Connection(address, key, secret, context)
        self._number = 0
        self._sent = False

    def ask(self, question: object, timeout_s: float) -> object | None:
        """The answer, None where there is none in time. Raises what the head refuses with."""
        self._number += 1
        deadline_s = time.monotonic() + timeout_s
        if not self._connection.send(self._number, ms.encode(question), min(CONNECT_S, timeout_s)):
            return None
        while received := self._connection.receive(max(0.0, deadline_s - time.monotonic())):
            if received[0] == self._number or not received[1]:  # not the late answer to a question before
                return self._read(received[1])
        return None

    def begin(self) -> None:
        """Be ready to poll for the answer to another question."""
        self._number += 1
        self._sent = False

    def poll(self, question: object) -> object | None:
        """The same without waiting; the question is sent once per connection."""
        if not self._sent or self._connection.renewed:
            self._sent = self._connection.send(self._number, ms.encode(question))
        received = self._connection.receive()
        return self._read(received[1]) if received and (received[0] == self._number or not received[1]) else None

    def _read(self, body: bytes) -> object:
        if not body:
            raise version.mismatch(f"the head at {self.address}", self._connection.stranger)
        try:
            answer: object = ms.to_client.decode(body)
        except msgspec.MsgspecError as error:
            what = f"the head at {self.address} says what this beo can't read"
            raise BeoError(what, str(error).lower(), "install the same beo on both") from None
        if isinstance(answer, ms.Failed):
            raise from_dict(answer.error)
        return answer

    @property
    def trouble(self) -> Refused | None:
        """Why no answer can come over this connection, if that is known."""
        if self._connection.refused:
            return Refused(
                f"the head at {self.address} knows neither this token nor this key",
                "it is of another time, or of another cluster",
                "make a new one with 'beo token' on the head's machine",
            )
        if self._connection.mistaken:
            return Refused(
                f"who listens at {self.address} is not the head that this token was made by",
                "it has another key",
                "compare the address with what 'beo info' says on the head's machine",
            )
        return None

    def close(self) -> None:
        self._connection.close()


class Heads:
    """Connections to the heads of a cluster, made when first needed. For one thread; use it in a `with`."""

    def __init__(self, heads: Sequence[str], key: str, secret: str) -> None:
        """Take where they are (host:port), their public key, and our own secret one."""
        self.idle = False  # one has said that it doesn't act and nor does the other
        self._heads = tuple(dict.fromkeys(heads))
        self._whom = key, secret
        self._ahead = list(self._heads)
        self._context = wire.new_context()
        self._lines: dict[str, _Line] = {}

    def __enter__(self) -> Heads:
        """Return this."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        for line in self._lines.values():
            line.close()
        self._context.destroy(linger=0)

    @property
    def where(self) -> str:
        """The addresses, as a text."""
        return " or ".join(self._heads)

    @property
    def trouble(self) -> Refused | None:
        """Why none of them can answer, if that is known of all."""
        troubles = [self._lines[head].trouble if head in self._lines else None for head in self._heads]
        return troubles[-1] if all(troubles) else None

    def _line(self, address: str) -> _Line:
        if address not in self._lines:
            self._lines[address] = _Line(address, *self._whom, self._context)
        return self._lines[address]

    def ask(self, question: object, timeout_s: float) -> object | None:
        """Return the answer of the head that acts, None where none comes in time. Raises what it refuses with."""
        deadline_s = time.monotonic() + timeout_s
        while (left_s := deadline_s - time.monotonic()) > 0:
            self._ahead = self._ahead or list(self._heads)
            address = self._ahead[0]
            answer = self._line(address).ask(question, min(ASK_AGAIN_S, left_s))
            if isinstance(answer, ms.Elsewhere):
                self.idle = not answer.head
                self._ahead = [answer.head] if answer.head else self._ahead[1:]
                time.sleep(ELSEWHERE_S)
            elif answer is not None:
                return answer
            else:
                del self._ahead[0]
                if self.trouble:
                    return None
        return None

    def look(self, question: object, timeout_s: float) -> dict[str, object]:
        """Return what each of them answers by itself, by address: a BeoError where it refuses or nothing comes."""
        found: dict[str, object] = {}
        deadline_s = time.monotonic() + timeout_s
        for address in self._heads:
            self._line(address).begin()
        while len(found) < len(self._heads) and time.monotonic() < deadline_s:
            for address in self._heads:
                if address in found:
                    continue
                try:
                    answer = self._line(address).poll(question)
                    if answer is not None:
                        found[address] = answer
                except BeoError as error:
                    found[address] = error
            time.sleep(PAUSE_S)
        for address in self._heads:
            if address not in found:
                silent = NoHead(f"no head answers at {address}", f"tried for {timeout_s:.0f} s", "see its log")
                found[address] = self._line(address).trouble or silent
        return found


def ask(
    heads: Sequence[str], key: str, secret: str, question: object, kind: type[Answer], patience_s: float = PATIENCE_S
) -> Answer:
    """Return the answer of the head that acts, which may be another than those that are named here.

    Raises what it refuses with, and after `patience_s` why no answer came: NoHead, or Refused where no key fits.
    """
    with Heads(heads, key, secret) as asked:
        answer = asked.ask(question, patience_s)
        if isinstance(answer, kind):
            return answer
        if answer is not None:
            raise NotFound(f"the head answered with {type(answer).__name__}", "", "install the head's beo here")
        if trouble := asked.trouble:
            raise trouble
        why = f"tried for {patience_s:.0f} s"
        if asked.idle:
            raise NoHead(f"no head acts at {asked.where}", why, "'beo ha status' on a head's machine tells why")
        raise NoHead(f"no head answers at {asked.where}", why, "see 'beo info' on the head's machine")


def look(
    heads: Sequence[str], key: str, secret: str, question: object, kind: type[Answer], patience_s: float = LOOK_S
) -> dict[str, Answer | BeoError]:
    """Return what each of these heads answers by itself, by address, or the error that tells why it doesn't."""
    with Heads(heads, key, secret) as asked:
        found: dict[str, Answer | BeoError] = {}
        for address, answer in asked.look(question, patience_s).items():
            if isinstance(answer, kind | BeoError):
                found[address] = answer
            else:
                what = f"the head at {address} answered with {type(answer).__name__}"
                found[address] = NotFound(what, "", "install the same beo on both")
        return found

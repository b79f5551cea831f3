"""The warden: the small process that keeps one attempt on one node, whatever becomes of the agent.

Started as `python -I -S warden.py FOLDER KIND [CROWD]` with the socket it listens on as descriptor 3. CROWD: the cgroup
that limits its processes, or their number. It is two processes of
one memory: the *keeper* outside the walls holds the leash and waits; *PID 1* inside them starts the ranks, serves them
and the agent, and reaps what dies. When the keeper dies, the kernel kills PID 1 and with it all behind the walls.

`warden.py --try KIND` builds the walls, runs nothing and ends with 0 if the kernel allowed it.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import struct
import sys
import time
from binascii import a2b_base64

if __name__ == "__main__":  # started by path, without site: the package is two folders up
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from beo.worker import contain
from beo.worker.attempt import Attempt
from beo.worker.frames import LISTENER, PIDS, FrameError, Frames, frame
from beo.worker.loop import READ, WRITE, Loop
from beo.worker.names import Names
from beo.worker.order import Order, whole, window

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

VERSION = 1
LONELY_S = 60.0
"""How long a warden without work waits for an agent before it goes."""
FILES_MAX = 1 << 20
"""Descriptors closed at the start: the kernel's own default limit (fs.nr_open)."""
RECEIVE_BYTES = 64 << 10
"""Received at a time: a larger buffer would be mapped and unmapped by the allocator for every message."""
UNSENT_BYTES_MAX = 64 << 20
"""Unsent messages that an agent may let pile up before it is cut off; it gets the state anew when it connects again."""
SEEN_MAX = 4096
"""Attempts remembered so as never to run one twice; the agent's own memory is the longer one."""

_ORDER = struct.Struct("=Q?")  # leash: until_ns (0: off), whether to answer


class Warden:
    """PID 1: the agent's connection on one side, the attempt on the other."""

    def __init__(
        self, folder: str, kind: str, outer: contain.OuterProc, keeper_pid: int, keeper: socket.socket, crowd: str = ""
    ) -> None:
        self._folder = folder
        self._kind = kind
        self._crowd = crowd
        self._outer = outer
        self._keeper_pid = keeper_pid
        self._keeper = keeper
        self._leashed = False
        self._loop = Loop()
        self._names = Names(kind, folder)
        self._attempt: Attempt | None = None
        self._seen: dict[tuple[int, int], None] = {}
        self._agent: socket.socket | None = None
        self._frames = Frames()
        self._unsent = bytearray()
        self._congested = False
        self._listener = socket.socket(fileno=LISTENER)
        self._listener.setblocking(False)

    def run(self) -> None:
        """Serve until there is nothing left to serve."""
        wake, woken = os.pipe()
        os.set_blocking(wake, False)
        os.set_blocking(woken, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
        self._loop.watch(wake, lambda: self._child_ended(wake))
        self._loop.watch(LISTENER, self._accept)
        self._loop.watch(self._keeper.fileno(), self._keeper_gone)
        self._loop.after(LONELY_S, "lonely", self._loop.stop)
        self._loop.each_turn.append(self._turn)
        self._loop.run()

    def _turn(self) -> None:
        if self._attempt:
            self._attempt.turn()
        self._flush()

    def _child_ended(self, wake: int) -> None:
        os.read(wake, 4096)
        if self._attempt:
            self._attempt.reap()

    def _keeper_gone(self) -> None:
        """Only without namespaces does this process outlive its keeper: the leash has no holder, so end it all."""
        contain.kill_all(self._kind, signal.SIGKILL)
        self._loop.stop()

    # -- the agent -------------------------------------------------------------------------------------------------

    def _accept(self) -> None:
        try:
            agent, _ = self._listener.accept()
        except BlockingIOError:
            return
        _, uid, _ = struct.unpack("3i", agent.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if uid not in (0, os.geteuid()):
            agent.close()
            return
        while self._receive():  # the last words of the agent that was; the newer one is the one that lives
            pass
        self._hang_up()
        agent.setblocking(False)
        self._agent, self._frames = agent, Frames()
        self._loop.watch(agent.fileno(), self._hear)
        self._loop.forget("lonely")
        self._send(
            {
                "op": "hello",
                "version": VERSION,
                "pid": self._outer.pid,
                "keeper_pid": self._keeper_pid,
                "contain": self._kind,
                "fresh": not self._seen,
            }
        )
        self._send_state()
        if self._attempt:
            self._attempt.tell_again()

    def _send_state(self) -> None:
        state = self._attempt.state() if self._attempt else {"phase": "idle"}
        self._send({"op": "state", **state})

    def _hang_up(self) -> None:
        if self._agent:
            self._loop.unwatch(self._agent.fileno())
            self._agent.close()
            self._agent = None
            self._unsent.clear()
            self._congested = False
        if not self._attempt:
            self._loop.after(LONELY_S, "lonely", self._loop.stop)

    def _send(self, message: dict[str, Any]) -> None:
        if self._agent:
            self._unsent += frame(message)
            if len(self._unsent) > UNSENT_BYTES_MAX:
                self._hang_up()

    def _flush(self) -> None:
        if not self._unsent or not self._agent:
            return
        try:
            while self._unsent:
                del self._unsent[: self._agent.send(self._unsent, socket.MSG_NOSIGNAL)]
            if self._congested:
                self._congested = False
                self._loop.watch(self._agent.fileno(), self._hear)
        except BlockingIOError:
            self._congested = True
            self._loop.watch(self._agent.fileno(), self._hear, READ | WRITE)
        except OSError:
            self._hang_up()

    def _hear(self) -> None:
        self._receive()

    def _receive(self) -> bool:
        """Act on what the agent has sent; whether there may be more."""
        try:
            data = self._agent.recv(RECEIVE_BYTES) if self._agent else b""
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self._hang_up()
            return False
        try:
            for message in self._frames.feed(data):
                self._handle(message)
        except (FrameError, KeyError, TypeError, ValueError, AttributeError) as error:
            print(f"beo: warden: the agent sent what is no message ({error!r}): closing its connection", flush=True)
            self._hang_up()
            return False
        return True

    def _handle(self, message: dict[str, Any]) -> None:
        op = message["op"]
        if op == "start":
            self._start(message)
        elif op == "leash":
            if self._attempt and self._attempt.phase != "ended":
                self._leash(whole(message, "until_ns"))
        elif op == "state":
            self._send_state()
        elif op == "exit":
            contain.kill_all(self._kind, signal.SIGKILL)
            self._loop.stop()
        elif op not in ("end", "signal", "halt", "stdin", "peer", "peer_ack", "committed"):
            raise ValueError(f"unknown op {op!r}")
        elif self._attempt and self._is_meant(message):
            self._handle_for(self._attempt, op, message)
        elif op == "committed":
            self._send_state()

    def _is_meant(self, message: dict[str, Any]) -> bool:
        """Whether a message is for this attempt and not a late one for the last."""
        order = self._attempt.order if self._attempt else None
        return order is not None and (
            message.get("job", order.job) == order.job and message.get("attempt", order.attempt) == order.attempt
        )

    def _handle_for(self, attempt: Attempt, op: str, message: dict[str, Any]) -> None:
        if op == "end":
            attempt.end(str(message["reason"]), float(message.get("grace_s") or 0), bool(message.get("wanted")))
        elif op == "signal":
            attempt.signal(whole(message, "serial"), whole(message, "signal"))
        elif op == "halt":
            attempt.halt(float(message.get("grace_s") or 0))
        elif op == "stdin":
            data = a2b_base64(message.get("data") or "")
            attempt.feed(whole(message, "offset"), data, bool(message.get("eof")), window(message, "window"))
        elif op == "peer":
            attempt.hear(message["from"], whole(message, "seq"), dict(message["body"]))
        elif op == "peer_ack":
            attempt.acknowledged(str(message["from"]), whole(message, "seq"))
        elif attempt.phase == "ended":
            self._committed(attempt)
        else:
            self._send_state()

    # -- attempts --------------------------------------------------------------------------------------------------

    def _start(self, message: dict[str, Any]) -> None:
        order = Order(message)
        if self._attempt or (order.job, order.attempt) in self._seen:
            self._send_state()
            return
        self._seen[order.job, order.attempt] = None
        if len(self._seen) > SEEN_MAX:
            del self._seen[next(iter(self._seen))]
        if order.leash_until_ns:
            self._leash(order.leash_until_ns)
        self._attempt = Attempt(
            order, self._kind, self._folder, self._outer, self._loop, self._send, lambda: self._leash(0), self._crowd
        )
        self._names.settle(order.node, order.names)
        self._attempt.start()

    def _committed(self, attempt: Attempt) -> None:
        attempt.forget()
        self._attempt = None
        if not attempt.order.reusable:
            self._loop.stop()
            return
        os.chdir("/")
        contain.freshen(self._kind)
        self._send({"op": "idle"})

    def _leash(self, until_ns: int) -> None:
        """Hand the leash's end to the keeper; when it is put on, wait until the kernel holds it."""
        answer = bool(until_ns) and not self._leashed
        if until_ns or self._leashed:
            self._leashed = bool(until_ns)
            self._keeper.send(_ORDER.pack(until_ns, answer))
        if answer:
            self._keeper.recv(1)


def keep(kind: str, pid: int, inside: socket.socket) -> None:
    """The keeper: hold the leash until PID 1 has gone, and reap it."""
    leash = None if kind == "subreaper" else contain.Leash()
    while True:
        try:
            order = inside.recv(_ORDER.size)
        except TimeoutError:
            break  # only without namespaces: there the leash is this wait
        if not order:
            break
        until_ns, answer = _ORDER.unpack(order)
        if leash:
            leash.set(until_ns)
        else:
            left_s = (until_ns - time.clock_gettime_ns(time.CLOCK_BOOTTIME)) / 1e9
            inside.settimeout(max(left_s, 1e-3) if until_ns else None)
        if answer:
            inside.send(b".")
    if not leash:
        while contain.inmates(kind):
            contain.kill_all(kind, signal.SIGKILL)
            try:
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            except ChildProcessError:
                break
            time.sleep(0.01)
        return
    os.waitpid(pid, 0)


def _limit_processes(crowd: str) -> None:
    try:
        contain.limit_processes(crowd)
    except OSError as error:  # jobs run all the same: who doesn't want that sees it in the log
        print(f"beo: warden: the number of processes isn't limited ({error})", flush=True)


def main(arguments: list[str]) -> int:
    """Build the walls, divide into keeper and PID 1, and serve."""
    trying = arguments[:1] == ["--try"]
    if len(arguments) not in (2, 3) or arguments[1] not in contain.KINDS:
        print(f"usage: warden.py (FOLDER | --try) ({' | '.join(contain.KINDS)}) [CROWD]", file=sys.stderr)
        return 2
    crowd = arguments[2] if len(arguments) == 3 else ""
    folder, kind = os.path.abspath(arguments[0]), arguments[1]
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # meant for the agent; the warden ends when its work does
    if not trying:
        os.set_inheritable(LISTENER, False)  # or every rank would get it
        os.closerange(LISTENER + 1, FILES_MAX)  # and what the agent's own parents may have left open
    outer = contain.OuterProc()
    contain.enter(kind)
    inside, keeper = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    keeper_pid = os.getpid()
    gc.freeze()  # or the first collection after the fork would copy every page
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            inside.close()
            if crowd:
                _limit_processes(crowd)
            contain.settle(kind)
            outer.locate()
            # If the keeper died before `settle` asked to die with it, nobody will tell: look for its end of the pair.
            keeper.send(_ORDER.pack(0, True))
            if keeper.recv(1) and not trying:
                outer.write_down(os.path.join(folder, PIDS), (outer.pid, keeper_pid))
                os.chdir("/")
                Warden(folder, kind, outer, keeper_pid, keeper, crowd).run()
            status = 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            sys.stderr.flush()
            os._exit(status)
    keeper.close()
    if trying:
        inside.settimeout(10)
        try:
            inside.recv(_ORDER.size)
            inside.send(b".")
        except OSError:
            pass
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.close(LISTENER)
    keep(kind, pid, inside)
    try:
        os.unlink(os.path.join(folder, "sock"))
    except OSError:
        pass
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

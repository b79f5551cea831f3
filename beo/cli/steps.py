"""`beo run` within a job: a step of that job's allocation, started by the job's own warden and not by the head."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections import deque

import click
from click.core import ParameterSource

from beo import spec
from beo.cli.options import script_text, variable
from beo.cli.waiting import StatusLine
from beo.cli.watch import Printer
from beo.errors import Conflict, UsageError
from beo.table import escape
from beo.worker.caller import Caller, StepError, environment, exit_code, has_input

TAKEN_OVER = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
ENDING = frozenset(TAKEN_OVER[:4])  # what ends a program that does nothing about it
# A program may take its time over one SIGINT, or a second; who presses a third time within this span means it.
INSIST_S = 2.0
INSIST_COUNT = 3
OF_STEPS = ("label", "new_job", "ranks", "nodes", "cpus", "env", "chdir", "command")


def run_step(context: click.Context, connection: socket.socket) -> int:
    """Run what the command line of `beo run` asks for as a step; return its exit code."""
    request = _request(context)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)  # a reader that has gone must end the step, not this program alone
    line = StatusLine()
    printer = Printer(label=True) if context.params["label"] else None
    caller = Caller(
        connection,
        printer.labelled if printer else lambda rank, fd, data: data,
        lambda why: line.show(why and f"the step waits: {escape(why)}"),
    )
    insistence = _Insistence(caller)
    caller.interrupted = insistence.has_come
    caller.take_over(TAKEN_OVER)
    try:
        ended = caller.call(request)
    except StepError as error:
        raise Conflict(error.what, error.why, error.cure) from None
    except KeyboardInterrupt:
        return 128 + insistence.number
    except BrokenPipeError:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGPIPE)
        raise
    finally:
        line.show("")
        if printer:
            printer.close()
    code = exit_code(ended)
    if ended.get("reason") and code - 128 not in insistence.forwarded:
        print(f"beo: the step failed ({escape(str(ended['reason']))})", file=sys.stderr, flush=True)
    return code


def _request(context: click.Context) -> dict[str, object]:
    asked = context.params
    for parameter in context.command.params:
        name = parameter.name or ""
        if name not in OF_STEPS and context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            why = "a step runs within the job that is there"
            raise UsageError(f"a step takes no {parameter.opts[-1]}", why, "leave it out, or give --new-job too")
    if asked["command"] and script_text(asked["command"][0]):
        cure = "leave them out, run it with its shell, or give --new-job"
        raise UsageError(f"{asked['command'][0]} has #BEO lines", "they ask for a job, and this is a step of one", cure)
    folder = os.path.abspath(asked["chdir"])
    wanted = spec.check(
        spec.JobSpec(
            argv=asked["command"],
            cwd=folder,
            env={**environment(os.environ), **dict(map(variable, asked["env"]))},
            ranks=asked["ranks"],
            nodes=asked["nodes"],
            cpus=asked["cpus"],
        )
    )
    return {
        "argv": list(wanted.argv),
        "cwd": wanted.cwd,
        "env": wanted.env,
        "ranks": wanted.ranks,
        "nodes": wanted.nodes,
        "cpus": wanted.cpus,
        "on": None,
        "mpi": True,
        "stdin": has_input(),
        "overlap": False,
    }


class _Insistence:
    """Tells when a signal is to end this program and not only to be passed on: before the step began, or again and
    again.
    """

    def __init__(self, caller: Caller) -> None:
        self.number = 0
        self.forwarded: set[int] = set()
        self._caller = caller
        self._interrupts_s: deque[float] = deque(maxlen=INSIST_COUNT)

    def has_come(self, number: int) -> bool:
        """Take note of a signal; whether to end now."""
        self.number = number
        if number == signal.SIGINT:
            self._interrupts_s.append(time.monotonic())
        if not self._caller.started:
            return number in ENDING
        self.forwarded.add(number)
        often = len(self._interrupts_s) == INSIST_COUNT
        return often and self._interrupts_s[-1] - self._interrupts_s[0] <= INSIST_S

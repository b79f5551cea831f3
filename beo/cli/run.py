"""The verb run: a program on the cluster that behaves like one started here."""

from __future__ import annotations

import os
import signal
import time
from collections import deque
from contextlib import suppress

import click

from beo.cli.group import Verb, option
from beo.cli.options import STOP_AT_COMMAND, job_options, spec_of, with_inputs
from beo.cli.steps import ENDING, INSIST_COUNT, INSIST_S, TAKEN_OVER, run_step
from beo.cli.terminal import Left, Screen, Terminal
from beo.cli.waiting import exit_code_of
from beo.cli.watch import Printer, Watch, follow_job
from beo.client import ENDED, Cluster
from beo.config import home
from beo.contact import new_key, open_ahead, tell
from beo.errors import BeoError, NoHead, UsageError
from beo.follow import Source
from beo.worker.caller import STEPS, has_input, knock

FORWARD_PATIENCE_S = 1.0  # for one try; output goes on in between
EXIT_LEFT = 128 + signal.SIGHUP  # of a session that was left by its escape: its terminal hangs up
GIVE_UP_S = 5.0  # a signal to end that no head takes for so long ends this program alone
PENDING_MAX = 100  # signals under way; those beyond are the same over and over


@click.command(
    cls=Verb,
    context_settings=STOP_AT_COMMAND,
    examples=[
        ("beo run -n 4 python pi.py", "four ranks, their output here"),
        ("sort words | beo run ./count", "rank 0 reads this program's input"),
        ("beo run -l -n 3 hostname", "who says what"),
        ("beo run -n 2 ./a & beo run -n 2 ./b & wait", "in a job's script: two steps at once"),
        ("beo run --pty bash", "a shell on a worker"),
        ("beo run --in . --out 'fit/*' ./fit", "its files along, its results here"),
    ],
    exits=[("program's", "the program's own, 128 + signal for a killed one")],
)
@option("-l", "--label", is_flag=True, help="Put the rank in front of each line.")
@option("--new-job", is_flag=True, help="Within a job: submit another one all the same.")
@option("--pty", is_flag=True, help="Give CMD a terminal like this one; ~? tells of escapes.")
@job_options(requeue="never")
@click.pass_context
def run(context: click.Context, /, **_: object) -> int:
    """Run CMD on the cluster and behave as if it ran here: its output, exit code, input and signals are this program's.

    Standard input goes to rank 0. SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1 and SIGUSR2 go to every rank; the third
    SIGINT within two seconds cancels the job. Where there is no room, it waits, and says why on a terminal.

    --in and --out are those of 'beo submit'; what --out has kept is copied to this folder when the job ends.

    With --pty, CMD runs in a terminal that looks like this one: a shell, an editor, a debugger. All keys are CMD's, ^C
    and ^Z too. At the beginning of a line, ~. ends the session, also when no head answers, ~^Z suspends it, and ~~ is a
    ~. With -n 8, CMD is one process with eight slots around it. When this terminal closes, CMD gets SIGHUP.

    Restarts of the head are waited out with no line lost or doubled. If this program is killed, the job ends a little
    later.

    Called by a job's own script or program, it makes no new job but a step: CMD takes slots of those that the job has,
    on all of its nodes, and waits while others have them. A step takes -n, -N, -c, --env and --chdir.
    """
    inside = None if context.params["new_job"] else knock(os.environ.get(STEPS, ""))
    if inside:
        if context.params["pty"]:
            cure = "leave --pty out, or take --new-job"
            raise UsageError("--pty within a job", "a step has no terminal of its own", cure)
        return run_step(context, inside)
    with suppress(BeoError):  # which comes again, from the one that needs it
        open_ahead(home(), control=2, bulk=1)  # to ask and to watch; for its output
    printer, source = _ends(context)
    window = source.window if context.params["pty"] and source else None
    job = spec_of(context, stdin=source is not None, attached=True, terminal=window)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)  # a reader that has gone must end the job, not this program alone
    cluster = Cluster()
    job = with_inputs(cluster, job, context.params["inputs"])
    number = cluster.submit(job, context.params["key"] or None)
    watch = Watch(cluster, number, attached=True)
    signals = Signals(cluster, watch, hang_up=job.terminal is not None)
    if isinstance(source, Terminal):
        source.changed = watch.waker.wake
    try:
        view = follow_job(cluster, watch, printer, source=source, on_wake=signals.forward)
    except Left:
        return _leave(cluster, number)
    except BrokenPipeError:
        cluster.cancel([str(number)])
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGPIPE)
        raise
    finally:
        signals.close()
    if job.outputs:
        _bring(number, job.cwd)
    # What ended by the signal that it was sent needs no explanation.
    as_told = view.code_by == "job" and view.exit_code - 128 in signals.delivered
    return signals.exit_code or exit_code_of([view], quiet=as_told)


def _ends(context: click.Context) -> tuple[Printer, Source | None]:
    """Return what the job's output is printed by, and where its input comes from, if from anywhere."""
    if not context.params["pty"]:
        return Printer(label=context.params["label"]), Source(0) if has_input() else None
    if context.params["label"]:
        raise UsageError("--label with --pty", "what a terminal shows has no lines to label", "leave one of them out")
    screen = Screen()
    return screen, Terminal(0, screen)


def _bring(job: int, folder: str) -> None:
    """Copy what the job has made to where it was submitted."""
    from beo.cli.files import bring  # here: few jobs have results

    bring(f"/jobs/{job}", folder)


def _leave(cluster: Cluster, job: int) -> int:
    """End the job of a session that its user has left; where no head can be told, the job ends for want of a client."""
    try:
        cluster.cancel([str(job)], FORWARD_PATIENCE_S)
        tell(f"left the session: job {job} is cancelled")
    except NoHead as error:
        tell(f"left the session: job {job} ends by itself about a minute after a head is back ({error.what})")
    return EXIT_LEFT


class Signals:
    """Takes this program's signals and forwards each to the job, once."""

    def __init__(self, cluster: Cluster, watch: Watch, hang_up: bool = False) -> None:
        """Take the signals over. `hang_up`: those to end cancel the job, as a shell in its terminal ignores most."""
        self.exit_code = 0  # of a job that was cancelled before it ran
        self.delivered: set[int] = set()
        self._cluster = cluster
        self._watch = watch
        self._hang_up = hang_up
        self._pending: deque[tuple[int, str, float]] = deque(maxlen=PENDING_MAX)  # number, key, when it came
        self._interrupts_s: deque[float] = deque(maxlen=INSIST_COUNT)
        self._before = {number: signal.signal(number, self._take) for number in TAKEN_OVER}

    def close(self) -> None:
        """Give the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def forward(self) -> None:
        """Send what has come to the job; what the head could not take is tried again the next time.

        Raises NoHead for a signal to end that has waited for too long: who sends one wants an end.
        """
        while self._pending:
            number, key, came_s = self._pending[0]
            try:
                self._send(number, key)
            except NoHead as error:
                if number not in ENDING or time.monotonic() - came_s < GIVE_UP_S:
                    return
                job = self._watch.job
                cure = f"job {job} ends by itself about a minute after a head is back, or 'beo cancel {job}'"
                raise NoHead(error.what, error.why, cure) from None
            except BeoError as error:
                if not self._is_over():
                    tell(str(error))
            self._pending.popleft()

    def _take(self, number: int, _: object) -> None:
        self._pending.append((number, new_key(), time.monotonic()))
        if number == signal.SIGINT:
            self._interrupts_s.append(time.monotonic())
        self._watch.waker.wake()

    def _send(self, number: int, key: str) -> None:
        view = self._watch.view
        first_s, last_s = (self._interrupts_s or (0.0,))[0], (self._interrupts_s or (0.0,))[-1]
        if len(self._interrupts_s) == INSIST_COUNT and last_s - first_s <= INSIST_S:
            self._cluster.cancel([str(self._watch.job)], FORWARD_PATIENCE_S)
        elif view and view.attempt and not (self._hang_up and number in ENDING):
            self._cluster.signal(self._watch.job, number, key, FORWARD_PATIENCE_S)
            self.delivered.add(number)
        elif number in ENDING:
            self._cluster.cancel([str(self._watch.job)], FORWARD_PATIENCE_S)
            self.exit_code = 128 + number

    def _is_over(self) -> bool:
        view = self._watch.view
        return bool(view and view.state in ENDED)

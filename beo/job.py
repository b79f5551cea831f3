"""Jobs from a program: `beo.submit`, `beo.run` and `beo.Job`.

    import beo

    job = beo.submit(["python", "pi.py"], ranks=4, mem="1GiB", time_limit="1h")
    print(job.wait(), job.logs())

The cluster is the one in `BEO_DIR` unless another is given.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence

from beo import messages as m
from beo import spec
from beo.client import ENDED, WAIT_SLICE_S, Cluster
from beo.errors import BeoError, NotFound, UsageError
from beo.submission import new_spec

TYPE_CHECKING = False  # what typing.TYPE_CHECKING is
if TYPE_CHECKING:
    from subprocess import CompletedProcess
    from typing import TypedDict, Unpack

    class Options(TypedDict, total=False):
        """What `new_spec` takes by name."""

        ranks: int
        nodes: int
        cpus: int
        mem: int | str
        time_limit: float | str
        name: str
        env: Mapping[str, str]
        cwd: str
        requeue: spec.Requeue
        priority: int
        output: str
        errors: str
        outputs: Sequence[str]


class Job:
    """One job of a cluster, by its id. What it tells is asked of the head each time."""

    def __init__(self, id: int, cluster: Cluster | None = None) -> None:
        """Take the id and the cluster (default: the one in `BEO_DIR`); whether there is such a job shows when asked."""
        self.id = id
        self.cluster = cluster or Cluster()

    def __repr__(self) -> str:
        """Show the id."""
        return f"Job({self.id})"

    @property
    def view(self) -> m.JobView:
        """The job's row in `beo queue`, as of now."""
        return self.cluster.look(self.id)

    @property
    def state(self) -> str:
        """Its state: queued, held, running, ending, done, failed, cancelled or lost."""
        return self.view.state

    @property
    def exit_code(self) -> int | None:
        """Its exit code (128 + signal for a killed one), or None while it has not ended."""
        view = self.view
        return view.exit_code if view.state in ENDED else None

    def wait(self, timeout_s: float | None = None) -> int:
        """Wait until it ended and return the exit code; raises `TimedOut` after `timeout_s`."""
        return self.cluster.wait([self.id], timeout_s)[0].exit_code

    def cancel(self) -> None:
        """End it."""
        self.cluster.cancel([str(self.id)])

    def hold(self) -> None:
        """Let it not start before `release`; raises `Conflict` where it doesn't wait."""
        self.cluster.hold([str(self.id)])

    def release(self) -> None:
        """Let it start, if it is held."""
        self.cluster.release([str(self.id)])

    def requeue(self, hold: bool = False) -> None:
        """Run it again, as a new attempt; what runs of it is ended first. `hold`: after a `release`."""
        self.cluster.requeue([str(self.id)], hold)

    def processes(self) -> list[tuple[str, m.Process]]:
        """Return its processes on all nodes, each with the name of its node."""
        answer = self.cluster.processes([str(self.id)])
        return [(told.node, process) for told in answer.nodes for process in told.processes]

    def kill(self, number: int, rank: int | None = None) -> None:
        """Send a signal to every rank, or to one; raises `NotFound` where that one doesn't run."""
        if rank is None:
            self.cluster.signal(self.id, number)
            return
        answer = self.cluster.kill([m.Target(self.id, "", 0, rank)], number)
        if not any(hit.rank == rank and not hit.trouble for hit in answer.hits):
            why = f"{', '.join(answer.silent)} did not answer" if answer.silent else ""
            raise NotFound(f"no rank {rank} of job {self.id} runs", why, "see 'beo ps'")

    def logs(self) -> str:
        """Return what its last attempt has written so far, stdout and stderr, in the order in which it came."""
        return b"".join(data for _, data in self.output()).decode(errors="replace")

    def output(self) -> Iterator[tuple[int, bytes]]:
        """Yield (fd, data) of what its last attempt has written so far; fd is 1 for stdout and 2 for stderr."""
        from beo.follow import follow  # here, because most who list or submit jobs never read any output

        attempt = self.view.attempt
        if attempt:
            for _, _, fd, data in follow(
                self.cluster.bulk, self.id, attempt, wait=False, learn=self.cluster.learn_heads
            ):
                yield fd, data


def submit(
    argv: Sequence[str],
    *,
    key: str | None = None,
    hold: bool = False,
    inputs: Sequence[str] = (),
    cluster: Cluster | None = None,
    **options: Unpack[Options],
) -> Job:
    """Submit a job and return it at once; `options` are those of `new_spec`.

    When this returns, the job is durable. `hold`: it starts after a `release`. `inputs`: files and folders that it has
    along as they are now, relative to its `cwd`; it runs where these are. What its `outputs` match is kept as
    ``/jobs/ID`` in the tree. See `Cluster.submit` for `key` and the errors.
    """
    cluster = cluster or Cluster()
    return Job(cluster.submit(_with(cluster, new_spec(argv, **options), inputs), key, hold=hold), cluster)


def _with(cluster: Cluster, job: spec.JobSpec, inputs: Sequence[str]) -> spec.JobSpec:
    if not inputs:
        return job
    from beo.bulk.taking import take_along  # here: most jobs take none along

    if isinstance(inputs, str):
        raise UsageError("inputs is one text", "it is a list of files", "write [text]")
    return take_along(cluster, job, list(map(os.fspath, inputs)))


def run(
    argv: Sequence[str],
    *,
    check: bool = False,
    inputs: Sequence[str] = (),
    cluster: Cluster | None = None,
    **options: Unpack[Options],
) -> CompletedProcess[str]:
    """Run a program on the cluster and return how it ended, as `subprocess.run` with `capture_output` and `text` does.

    `options` are those of `new_spec`, `inputs` those of `submit`. The job is cancelled where this call is interrupted,
    and ends by itself where this process dies. Raises `subprocess.CalledProcessError` for another exit code
    than 0 where `check`, and `BeoError` for a job that did not end of its own accord: cancelled, lost, or over its time
    limit.
    """
    from subprocess import CompletedProcess  # here, because `submit` does without

    cluster = cluster or Cluster()
    job = Job(cluster.submit(_with(cluster, new_spec(argv, attached=True, **options), inputs)), cluster)
    try:
        view = job.view
        while view.state not in ENDED:
            view = cluster.look(job.id, f"{view.state}/{view.attempt}", WAIT_SLICE_S, attached=True)
    except BaseException:
        job.cancel()
        raise
    if view.code_by == "beo":
        raise BeoError(f"job {job.id} ended as {view.state}", view.reason, f"see 'beo show {job.id}'")
    written: dict[int, list[bytes]] = {1: [], 2: []}
    for fd, data in job.output():
        written[fd].append(data)
    output, error = (b"".join(parts).decode(errors="replace") for parts in written.values())
    result = CompletedProcess(list(argv), view.exit_code, output, error)
    if check:
        result.check_returncode()
    return result

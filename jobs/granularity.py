"""How long a piece of work takes on more and more ranks, by how finely it is divided: the law of granularity.

beo run -n 4 python jobs/granularity.py --plot granularity.png

The work comes in rounds; in each, every rank computes its share of a grain, and rank 0 hears from every other and
answers. With the time T(1) of the work itself and the price of a round's messages for each further rank,

    T(n) = work / n + messages · (n - 1),   which is least near n = √(work / messages).
"""

import argparse
import sys

import numpy as np

MESSAGE_NUMBERS = 128  # 1 KiB each way
GRAIN_MAX = 10**8
RANKS_MAX = 1_000  # the law is not trusted beyond


def fit(ranks: list[int], times_s: list[float]) -> tuple[float, float]:
    """Return (work, messages) in seconds: the law that comes nearest to what was measured, neither below 0."""
    law = np.array([[1 / n, n - 1] for n in ranks]) / np.array(times_s)[:, np.newaxis]  # by relative errors
    work, messages = np.linalg.lstsq(law, np.ones(len(ranks)), rcond=None)[0]
    return max(0.0, float(work)), max(0.0, float(messages))


def best(work_s: float, messages_s: float, ranks_max: int = RANKS_MAX) -> int:
    """Return the number of ranks with which the law's time is least."""
    near = int((work_s / messages_s) ** 0.5) if messages_s > work_s / ranks_max**2 else ranks_max
    candidates = range(max(1, near - 1), min(ranks_max, near + 2) + 1)
    return min(candidates, key=lambda n: work_s / n + messages_s * (n - 1))


def measure(comm, units: int, grain: int) -> float:  # type: ignore[no-untyped-def]
    """Return the seconds of `units` of work in rounds of `grain`, shared out over the ranks of `comm`."""
    share = np.linspace(0.0, 1.0, max(1, grain // comm.size))
    news, answer = np.zeros(MESSAGE_NUMBERS), np.zeros(MESSAGE_NUMBERS)
    comm.Barrier()
    start_s = MPI.Wtime()
    for _ in range(max(1, units // grain)):
        news[0] = np.sqrt(share * share + 1.0).sum()
        if comm.rank:
            comm.Send(news, dest=0)
            comm.Recv(answer, source=0)
        else:
            for other in range(1, comm.size):
                comm.Recv(answer, source=other)
                comm.Send(answer, dest=other)
    comm.Barrier()
    return MPI.Wtime() - start_s


def plot(path: str, ranks: list[int], rows: dict[int, list[float]]) -> None:
    """Draw what was measured as points and the law as a line for each grain."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    n = np.linspace(1, max(2, 2 * ranks[-1]), 200)
    for grain, times_s in rows.items():
        work_s, messages_s = fit(ranks, times_s)
        (line,) = axes.plot(n, work_s / n + messages_s * (n - 1), label=f"grain {grain:,}")
        axes.plot(ranks, times_s, "o", color=line.get_color())
    axes.set(xlabel="ranks", ylabel="seconds", yscale="log", title="Time against ranks, by the size of a grain")
    axes.set_xticks(range(1, max(2, 2 * ranks[-1]) + 1))
    axes.grid(alpha=0.3)
    if rows:
        axes.legend()
    figure.savefig(path)


if __name__ == "__main__":
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    parser = argparse.ArgumentParser(description="time against ranks and grain size")
    parser.add_argument("--units", type=int, default=8_000_000, help="work in all (default %(default)s)")
    parser.add_argument("--grains", type=int, nargs="+", default=[2_000, 20_000, 200_000, 2_000_000])
    parser.add_argument("--repeat", type=int, default=3, help="measure so often, take the median")
    parser.add_argument("--plot", metavar="FILE", help="draw it (.png, .svg; wants matplotlib)")
    args = parser.parse_args()
    if not all(1 <= grain <= GRAIN_MAX for grain in [args.units, *args.grains]) or args.repeat < 1:
        parser.error(f"units and grains are 1 to {GRAIN_MAX}, and --repeat is 1 or more")
    if args.plot and world.rank == 0:
        try:  # before anything is measured: that it can be drawn, and there
            plot(args.plot, [1], {})
        except ImportError:
            print("granularity: no matplotlib for --plot: pip install 'beo[plot]'", file=sys.stderr, flush=True)
            world.Abort(2)
        except (OSError, ValueError) as error:
            print(f"granularity: can't draw into {args.plot!r} ({error}): name another", file=sys.stderr, flush=True)
            world.Abort(2)
    ranks = list(range(1, world.size + 1))
    rows: dict[int, list[float]] = {grain: [] for grain in args.grains}
    for n in ranks:
        comm = world.Split(0 if world.rank < n else MPI.UNDEFINED, world.rank)
        for grain in args.grains:
            if comm != MPI.COMM_NULL:
                rows[grain].append(float(np.median([measure(comm, args.units, grain) for _ in range(args.repeat)])))
        world.Barrier()
    if world.rank == 0:
        print("grain     " + "".join(f"  T({n}) s" for n in ranks) + "   messages µs   best")
        for grain, times_s in rows.items():
            work_s, messages_s = fit(ranks, times_s)
            per_round_us = messages_s / max(1, args.units // grain) * 1e6
            times = "".join(f"{time_s:8.3f}" for time_s in times_s)
            least = best(work_s, messages_s)
            most = f"{RANKS_MAX}+" if least == RANKS_MAX else str(least)
            print(f"{grain:<10}{times}{per_round_us:14.1f}{most:>7}", flush=True)
        if args.plot:
            plot(args.plot, ranks, rows)
            print(f"drawn in {args.plot}", flush=True)

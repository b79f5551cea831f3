"""`make sim-files`: how long chunks take to reach many nodes, with the real code deciding, as a table and a picture.

    python -m tests.sim.spread_plot [--nodes 200] [--seed 1] [--plot docs/files-peers.svg]

1 GB to 200 nodes over 1 Gbit/s each way at every machine (117 MB/s of it are bytes of chunks), in virtual time.
"""

from __future__ import annotations

import argparse
import sys
import time

from beo.bulk.words import CHUNK_MAX_BYTES
from tests.sim.spread import World

LINK_BYTES_S = 117e6  # of 1 Gbit/s, what TCP over Ethernet leaves
GB = 10**9
END_S = 20_000.0
HEAD_DIES_S, GAP_S = 3.0, 1.5
NODES_DIE_S, SILENT_DIE_S = 4.0, 5.0
PART_LOST = 0.05  # of the nodes, each time


def course(nodes: int, seed: int, kind: str) -> World:
    """Return a world that has come to its end. kind: "alone" (no node serves), "peers" or "trouble"."""
    world = World(nodes, -(-GB // CHUNK_MAX_BYTES), CHUNK_MAX_BYTES, LINK_BYTES_S, seed, peers=kind != "alone")
    if kind == "trouble":
        names = [f"n{number}" for number in range(nodes)]
        some = round(nodes * PART_LOST)
        world.at(HEAD_DIES_S, lambda: world.kill_head(GAP_S))
        world.at(NODES_DIE_S, lambda: world.lose(names[:some], with_word=True))
        world.at(SILENT_DIE_S, lambda: world.lose(names[some : 2 * some], with_word=False))
    world.run(END_S)
    world.check()
    return world


def plot(path: str, nodes: int, worlds: dict[str, World]) -> None:
    """Draw how much has come, against time; raises ImportError without matplotlib."""
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams.update({"svg.hashsalt": "beo", "svg.fonttype": "none"})
    figure = Figure(figsize=(7, 4), layout="tight")
    axes = figure.subplots()
    for name, world in worlds.items():
        points = world.course[:: max(1, len(world.course) // 400)] + world.course[-1:]
        axes.plot([at for at, _ in points], [came * CHUNK_MAX_BYTES / GB for _, came in points], label=name)
    axes.set(xlabel="seconds", ylabel="GB that have come, at all nodes together", xscale="log")
    axes.set_title(f"1 GB to {nodes} nodes over 1 Gbit/s")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, metadata={"Date": None})


def main() -> int:
    """Let it come to its end, three times."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim.spread_plot", description=__doc__)
    parser.add_argument("--nodes", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--plot", metavar="FILE", help="draw it (wants matplotlib)")
    chosen = parser.parse_args()
    kinds = {
        "the head alone": "alone",
        "from node to node": "peers",
        "and a tenth of the nodes and the head die": "trouble",
    }
    worlds: dict[str, World] = {}
    print(
        "| | half of the nodes | all nodes | sent by the head | questions a second |\n| --- | --- | --- | --- | --- |"
    )
    for name, kind in kinds.items():
        began_s = time.monotonic()
        world = worlds[name] = course(chosen.nodes, chosen.seed, kind)
        cells = (
            name,
            _duration(world.done_s(0.5)),
            _duration(world.done_s()),
            f"{world.head_bytes / GB:.1f} GB",
            f"{world.questions / world.done_s():,.0f}",
        )
        print(f"| {' | '.join(cells)} |", flush=True)
        print(f"  ({time.monotonic() - began_s:.0f} s)", file=sys.stderr)
    if chosen.plot:
        plot(chosen.plot, chosen.nodes, worlds)
    return 0


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.1f} minutes"


if __name__ == "__main__":
    sys.exit(main())

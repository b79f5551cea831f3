"""`make sim-boot`: how long many machines take that are switched on together, as a table and a picture.

    python -m tests.sim.storm_plot [--nodes 200] [--seed 1] [--plot docs/boot-storm.svg]

An image of 97 MB, a kernel and initrd of 17 MB, 1 Gbit/s each way at every machine, in virtual time.
"""

from __future__ import annotations

import argparse

from tests.sim.storm import IMAGE_BYTES, World

KINDS: dict[str, dict[str, int]] = {
    "the head alone": {"peers": 0},
    "from machine to machine": {},
    "and a tenth of them die or lie": {"dying": 10, "lying": 10},
}


def course(nodes: int, seed: int, kind: str) -> World:
    """Return a morning that is over."""
    some = {name: value * nodes // 200 for name, value in KINDS[kind].items() if name != "peers"}
    world = World(nodes, seed, "peers" not in KINDS[kind], **some)
    world.run()
    return world


def plot(path: str, nodes: int, worlds: dict[str, World]) -> None:
    """Draw how many run, against time; raises ImportError without matplotlib."""
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams.update({"svg.hashsalt": "beo", "svg.fonttype": "none"})
    figure = Figure(figsize=(7, 4), layout="tight")
    axes = figure.subplots()
    for name, world in worlds.items():
        axes.step([0.0, *world.course], range(len(world.course) + 1), where="post", label=name)
    axes.set(xlabel="seconds since they were switched on", ylabel="machines that run")
    axes.set_title(f"{nodes} machines boot {IMAGE_BYTES // 10**6} MB over 1 Gbit/s")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, metadata={"Date": None})


def main() -> int:
    """Let it come to its end, three times."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim.storm_plot", description=__doc__)
    parser.add_argument("--nodes", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--plot", metavar="FILE", help="draw it (wants matplotlib)")
    chosen = parser.parse_args()
    worlds: dict[str, World] = {}
    print("| | half of them run | all run | sent by the head | told to ask later |\n| --- | --- | --- | --- | --- |")
    for name in KINDS:
        world = worlds[name] = course(chosen.nodes, chosen.seed, name)
        cells = (name, f"{world.done_s(0.5):.0f} s", f"{world.done_s():.0f} s", f"{world.head_bytes / 1e9:.1f} GB")
        print(f"| {' | '.join(cells)} | {world.later} times |")
    if chosen.plot:
        plot(chosen.plot, chosen.nodes, worlds)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

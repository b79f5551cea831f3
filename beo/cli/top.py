"""The verb top: nodes, jobs and the busiest processes, live."""

from __future__ import annotations

import os
import sys
import threading
import time
from typing import Any

import click

from beo import units
from beo.cli import screen
from beo.cli.group import Verb, option
from beo.client import Cluster
from beo.errors import BeoError, NoHead, UsageError

DELAY_S = 2.0
DELAY_MIN_S = 0.2  # quicker, the looking would be what keeps the nodes busy
JOBS_SHOWN = 200  # rows asked for: more fit on no screen
KEY_WAIT_MS = 100
PLAIN_SIZE = (160, 1_000)  # columns and lines where stdout is no terminal
FOOTER = " q quit   c by cpu   m by memory   space now"


@click.command(
    cls=Verb,
    examples=[
        ("beo top", "until q is pressed"),
        ("beo top -n 1", "one look, as plain text"),
        ("beo top -d 10s | tee load.txt", "every 10 seconds, into a file too"),
    ],
)
@option("-n", "count", type=click.IntRange(1), help="Print so many looks as plain text, then end.")
@option("-d", "--delay", default="2s", metavar="TIME", help="Between two looks (default 2s).")
def top(count: int | None, delay: str) -> None:
    """Watch the cluster: nodes with their load, slots and memory, jobs, and the busiest processes.

    On a terminal the picture renews itself: q quits, c sorts the processes by CPU, m by memory. Elsewhere, or with -n,
    it is printed again and again. CPU is the percentage of one processor since the last look. Processes are those of
    your own jobs, or everybody's if you are an admin. Restarts of the head are waited out.
    """
    delay_s = units.parse_duration(delay)
    if delay_s < DELAY_MIN_S:
        raise UsageError(
            f"a delay of {delay}", f"it must be {units.format_duration(DELAY_MIN_S)} at least", "change -d"
        )
    cluster = Cluster()
    if count or not sys.stdout.isatty() or not sys.stdin.isatty():
        _plain(cluster, count, delay_s)
    else:
        _live(cluster, delay_s)


def look(cluster: Cluster) -> screen.Snapshot:
    """Ask the head for everything that the screen shows."""
    return screen.Snapshot(
        cluster.info(),
        cluster.nodes(),
        cluster.jobs(limit=JOBS_SHOWN),
        cluster.processes(machines=True),
        time.monotonic(),
        time.time(),
    )


def _plain(cluster: Cluster, count: int | None, delay_s: float) -> None:
    width, height = os.get_terminal_size() if sys.stdout.isatty() else PLAIN_SIZE
    before, seen = None, 0
    while True:
        now = look(cluster)
        if seen:
            print()
        print(time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(now.wall_s)))
        for line in screen.lines(now, before, width, PLAIN_SIZE[1] if count else height):
            print(line.text)
        sys.stdout.flush()
        before, seen = now, seen + 1
        if seen == count:
            return
        time.sleep(delay_s)


class Looker:
    """Looks at the cluster again and again, by a thread of its own, so that no key waits for a head."""

    def __init__(self, cluster: Cluster, delay_s: float) -> None:
        """Begin."""
        self._cluster = cluster
        self._delay_s = delay_s
        self._lock = threading.Lock()
        self._now: screen.Snapshot | None = None
        self._before: screen.Snapshot | None = None
        self._error: BeoError | None = None
        self._soon = threading.Event()
        self.looks = 0
        threading.Thread(target=self._run, daemon=True).start()

    def soon(self) -> None:
        """Look now."""
        self._soon.set()

    def seen(self) -> tuple[screen.Snapshot | None, screen.Snapshot | None]:
        """Return the last snapshot and the one before it; raises what can't be waited out."""
        with self._lock:
            if self._error:
                raise self._error
            return self._now, self._before

    def _run(self) -> None:
        while not self._error:
            try:
                now = look(self._cluster)
                with self._lock:
                    self._now, self._before = now, self._now
            except NoHead as error:
                with self._lock:
                    if self._now:
                        self._now.trouble = f"{error.what}: waiting"
                    else:
                        self._error = error
            except BeoError as error:
                self._error = error
            self.looks += 1
            self._soon.wait(self._delay_s)
            self._soon.clear()


def _live(cluster: Cluster, delay_s: float) -> None:
    import curses  # here, because only a terminal needs it
    import locale

    locale.setlocale(locale.LC_ALL, "")
    looker = Looker(cluster, delay_s)
    while looker.seen()[0] is None:  # the first error is told as any verb's, on a terminal as it was
        time.sleep(KEY_WAIT_MS / 1000)
    curses.wrapper(_draw_until_quit, looker)


def _draw_until_quit(window: Any, looker: Looker) -> None:
    import curses

    styles = _styles()
    window.timeout(KEY_WAIT_MS)
    by_memory, drawn = False, None
    while True:
        now, before = looker.seen()
        assert now
        height, width = window.getmaxyx()
        state = (looker.looks, now.trouble, by_memory, height, width)
        if state != drawn:
            drawn = state
            window.erase()
            for number, line in enumerate(screen.lines(now, before, width - 1, height - 1, by_memory)):
                _put(window, number, line, styles, width)
            clock = time.strftime("%H:%M:%S", time.localtime(now.wall_s))
            window.insstr(height - 1, 0, FOOTER[: width - 1], curses.A_DIM)
            if width > len(FOOTER) + len(clock) + 2:
                window.insstr(height - 1, width - len(clock) - 1, clock, curses.A_DIM)
            window.refresh()
        key = window.getch()
        if key in (ord("q"), ord("Q")):
            return
        if key == ord(" "):
            looker.soon()
        elif key in (ord("m"), ord("c")):
            by_memory = key == ord("m")


def _styles() -> list[int]:
    import curses

    styles = [0, curses.A_BOLD, curses.A_REVERSE, 0, curses.A_BOLD, curses.A_BOLD, curses.A_DIM]
    if curses.has_colors():
        curses.use_default_colors()
        for style, color in (
            (screen.TITLE, curses.COLOR_CYAN),
            (screen.GOOD, curses.COLOR_GREEN),
            (screen.WARNING, curses.COLOR_YELLOW),
            (screen.BAD, curses.COLOR_RED),
        ):
            curses.init_pair(style, color, -1)
            styles[style] |= curses.color_pair(style)
    return styles


def _put(window: Any, number: int, line: screen.Line, styles: list[int], width: int) -> None:
    text = line.text.ljust(width - 1) if line.style == screen.HEADING else line.text
    window.insstr(number, 0, text, styles[line.style])
    for at, length, style in line.parts:
        window.chgat(number, at, length, styles[style])

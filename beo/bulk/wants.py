"""Which chunks a node still wants, and for whom. Pure.

Each node asks for them in an order of its own, so that nodes soon have different ones to give to each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from beo.bulk.words import WANTS_MAX

WANTED_MAX = 1_000_000  # 4 TB


class Wants:
    """Names, in the order in which they are asked for, and who waits for each."""

    def __init__(self, shuffle: Callable[[list[bytes]], None]) -> None:
        """Nothing is wanted yet. shuffle: puts a list into an order of this node's own."""
        self._shuffle = shuffle
        self._waiting: dict[bytes, bool] = {}  # not under way
        self._under_way: dict[bytes, bool] = {}
        self._clients: dict[bytes, dict[int, bool]] = {}

    def __len__(self) -> int:
        """How many are wanted."""
        return len(self._clients)

    @property
    def waiting(self) -> int:
        """How many of them are not under way."""
        return len(self._waiting)

    def add(self, client: int, names: Iterable[bytes]) -> None:
        """A client wants these."""
        new = []
        for name in names:
            if name not in self._clients:
                new.append(name)
            self._clients.setdefault(name, {})[client] = True
        self._shuffle(new)
        self._waiting.update(dict.fromkeys(new, True))

    def leave(self, client: int) -> None:
        """A client wants nothing more."""
        for name in [name for name, clients in self._clients.items() if client in clients]:
            del self._clients[name][client]
            if not self._clients[name]:
                del self._clients[name]
                self._waiting.pop(name, None)

    def window(self) -> tuple[bytes, ...]:
        """Return what to ask for next; what is asked for goes to the end, so that nothing keeps others from it."""
        names = []
        for name in self._waiting:
            names.append(name)
            if len(names) == WANTS_MAX:
                break
        for name in names:
            del self._waiting[name]
            self._waiting[name] = True
        return tuple(names)

    def start(self, name: bytes) -> bool:
        """A source was told: whether it is to be fetched now."""
        if not self._waiting.pop(name, False):
            return False
        self._under_way[name] = True
        return True

    def again(self, name: bytes) -> None:
        """It did not come: it is asked for again, if anybody still wants it."""
        self._under_way.pop(name, None)
        if name in self._clients:
            self._waiting[name] = True

    def end(self, name: bytes) -> list[int]:
        """It is here, or will never be: return who wanted it."""
        self._under_way.pop(name, None)
        self._waiting.pop(name, None)
        return list(self._clients.pop(name, {}))

    def all(self) -> list[bytes]:
        """Return every name that is wanted."""
        return list(self._clients)

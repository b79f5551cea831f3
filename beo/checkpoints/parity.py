"""Sums of bytes over GF(256), by numpy: the arithmetic of parity.

A sum is an exclusive or. Multiplication by 2 is four passes of numpy's, by any other weight it is a table, which is ten
times as slow. Arrays are of uint8 and of equal length.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from beo.checkpoints.plan import multiply, power

Bytes = NDArray[np.uint8]

_REST = np.uint8(0x1D)  # what the polynomial leaves of the ninth bit
_ZERO = np.int8(0)


class Adder:
    """Sums pieces by weights into `total` as they come, in the order of the weights."""

    def __init__(self, weights: Sequence[int], total: Bytes, scratch: Scratch) -> None:
        """Take where the sum goes; scratch: of this length at least, shared by sums that don't overlap in time."""
        self._weights = list(weights)
        self._total = total
        self._scratch = scratch
        self._added = 0
        last = len(weights) - 1
        self._by_horner = last > 0 and list(weights) == [power(last - n) for n in range(len(weights))]

    @property
    def begins_plain(self) -> bool:
        """Whether the first piece counts as it is, so that it may as well come straight to where the sum goes."""
        return self._by_horner or self._weights[0] == 1

    def begin(self) -> None:
        """Know that the first piece is where the sum goes."""
        self._added = 1

    def add(self, piece: Bytes) -> None:
        """Take the next piece."""
        weight = self._weights[self._added]
        self._added += 1
        first, total = self._added == 1, self._total
        if self._by_horner:
            if first:
                np.copyto(total, piece)
                return
            self._scratch.double(total)
            np.bitwise_xor(total, piece, out=total)
            return
        if weight != 1:
            piece = np.take(table(weight), piece, out=self._scratch.bytes[: len(piece)], mode="clip")
        if first:
            np.copyto(total, piece)
        else:
            np.bitwise_xor(total, piece, out=total)


class Scratch:
    """Memory for sums of pieces of up to so many bytes. It is made as it is needed, and kept: new pages cost more than
    what is done with them."""

    def __init__(self, size_bytes: int) -> None:
        """Take how long a piece is at most."""
        self._size_bytes = size_bytes
        self._free: list[Bytes] = []
        self.bytes = self.take()

    def take(self) -> Bytes:
        """Return a buffer for one piece, until it is given back."""
        return self._free.pop() if self._free else np.empty(self._size_bytes, np.uint8)

    def give(self, buffer: Bytes) -> None:
        """Take it back."""
        self._free.append(buffer)

    def double(self, total: Bytes) -> None:
        """Multiply every byte by 2, in place."""
        carry = self.bytes[: len(total)]
        np.less(total.view(np.int8), _ZERO, out=carry.view(np.bool_))  # 1 where the highest bit is set
        np.multiply(carry, _REST, out=carry)
        np.add(total, total, out=total)
        np.bitwise_xor(total, carry, out=total)


@cache
def table(weight: int) -> Bytes:
    """Return the products of `weight` with each byte."""
    return np.array([multiply(weight, byte) for byte in range(256)], np.uint8)

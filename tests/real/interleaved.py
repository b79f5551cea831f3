"""Ranks of MPI write one file together: ``interleaved.py PATH KIND``, and compare the bytes at the end.

together: interleaved blocks by a view and Write_at_all. apart: the same by Write_at, without the other ranks. slab:
each rank a rectangle of one matrix (MPI_Type_create_subarray), as parallel HDF5 writes hyperslabs.
"""

import sys

import numpy
from mpi4py import MPI

BLOCK = 3_001  # no power of two: the ranks' bytes share pages
BLOCKS = 16
ROWS, COLUMNS = 96, 130

world = MPI.COMM_WORLD
rank, size = world.rank, world.size


def blocks(path: str, together: bool) -> bytes:
    """Block i of rank r is at (i * size + r) * BLOCK; return what the file should hold."""
    file = MPI.File.Open(world, path, MPI.MODE_CREATE | MPI.MODE_RDWR)
    own = numpy.arange(BLOCK * BLOCKS, dtype=numpy.uint8) + numpy.uint8(31 * rank)
    if together:
        kind = MPI.BYTE.Create_vector(BLOCKS, BLOCK, BLOCK * size).Commit()
        file.Set_view(rank * BLOCK, MPI.BYTE, kind)
        file.Write_at_all(0, own)
        kind.Free()
    else:
        for number in range(BLOCKS):
            file.Write_at((number * size + rank) * BLOCK, own[number * BLOCK : (number + 1) * BLOCK])
    file.Close()
    everybody = [numpy.arange(BLOCK * BLOCKS, dtype=numpy.uint8) + numpy.uint8(31 * one) for one in range(size)]
    return numpy.stack(everybody).reshape(size, BLOCKS, BLOCK).transpose(1, 0, 2).tobytes()


def slab(path: str) -> bytes:
    """A matrix of doubles, in 2 x (size / 2) rectangles; each rank reads another one's back, by a view of its own."""
    across = size // 2

    def place(one: int) -> tuple[list[int], list[int]]:
        shape = [ROWS // 2, COLUMNS // across]
        return shape, [one // across * shape[0], one % across * shape[1]]

    shape, start = place(rank)
    file = MPI.File.Open(world, path, MPI.MODE_CREATE | MPI.MODE_RDWR)
    whole = numpy.arange(ROWS * COLUMNS, dtype=float).reshape(ROWS, COLUMNS)
    kind = MPI.DOUBLE.Create_subarray([ROWS, COLUMNS], shape, start).Commit()
    file.Set_view(0, MPI.DOUBLE, kind)
    file.Write_all(numpy.ascontiguousarray(whole[start[0] : start[0] + shape[0], start[1] : start[1] + shape[1]]))
    file.Sync()
    world.Barrier()
    file.Sync()
    other_shape, other_start = place((rank + 1) % size)
    other = MPI.DOUBLE.Create_subarray([ROWS, COLUMNS], other_shape, other_start).Commit()
    file.Set_view(0, MPI.DOUBLE, other)
    found = numpy.empty(other_shape)
    file.Read_all(found)
    wanted = whole[other_start[0] : other_start[0] + other_shape[0], other_start[1] : other_start[1] + other_shape[1]]
    assert (found == wanted).all(), f"rank {rank} reads what isn't there"
    file.Close()
    return whole.tobytes()


path, how = sys.argv[1:]
wanted = slab(path) if how == "slab" else blocks(path, together=how == "together")
world.Barrier()
with open(path, "rb") as plain:  # each node by its own mount
    assert plain.read() == wanted, f"rank {rank} on {MPI.Get_processor_name()}: wrong bytes"
print(f"rank {rank} of {size} right", flush=True)

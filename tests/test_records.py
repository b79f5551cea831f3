"""Records: what goes in comes out, however it is cut, and nothing else passes for one."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beo import records
from beo.messages import CHUNK_SIZE_MAX_BYTES
from beo.records import NUMBERS_MAX, DamagedRecord, Record
from beo.worker import spool, steps

RECORDS = st.lists(
    st.builds(Record, st.integers(0, NUMBERS_MAX - 1), st.sampled_from((1, 2)), st.binary(max_size=50)), max_size=20
)


@given(RECORDS)
def test_what_is_packed_is_unpacked(some: list[Record]) -> None:
    data = b"".join(records.pack(*record) for record in some)
    assert list(records.unpack(data)) == some
    assert records.whole_length(data) == len(data)


def test_a_record_that_is_cut_off_is_not_whole() -> None:
    first, second = records.pack(0, 1, b"one\n"), records.pack(7, 2, b"two\n")
    for length in range(len(first), len(first + second)):
        data = (first + second)[:length]
        assert records.whole_length(data) == len(first)
        if length > len(first):
            with pytest.raises(DamagedRecord, match="cut off"):
                list(records.unpack(data))


@given(st.binary(max_size=200))
def test_any_bytes_are_records_or_a_clear_error(data: bytes) -> None:
    told = ""
    try:
        assert 0 <= records.whole_length(data) <= len(data)
        list(records.unpack(data))
    except DamagedRecord as error:
        told = str(error)
    assert not told or "no output record at byte" in told


@pytest.mark.parametrize(
    ("rank", "fd", "size"), [(NUMBERS_MAX, 1, 1), (0, 0, 1), (0, 3, 1), (0, 1, records.RECORD_SIZE_MAX_BYTES + 1)]
)
def test_each_bound_of_a_record_is_held(rank: int, fd: int, size: int) -> None:
    with pytest.raises(DamagedRecord):
        records.pack(rank, fd, bytes(size))
    with pytest.raises(DamagedRecord):
        records.whole_length(records.HEADER.pack(rank, fd, size))


def test_the_wardens_writer_and_this_reader_agree(tmp_path: Path) -> None:
    writer = spool.Spool(str(tmp_path / "1.1.spool"))
    long = bytes(range(256)) * 1000
    writer.add(3, 1, b"hello\n")
    writer.add(NUMBERS_MAX - 1, 2, long)
    assert writer.write()
    writer.close()
    data = (tmp_path / "1.1.spool").read_bytes()
    assert records.whole_length(data) == len(data) == writer.whole_bytes
    found = list(records.unpack(data))
    assert found[0] == Record(3, 1, b"hello\n")
    assert b"".join(record.data for record in found[1:]) == long
    assert found == [Record(*record) for record in spool.records(data)]


def test_a_chunk_always_has_room_for_the_longest_record() -> None:
    assert records.HEADER.size + records.RECORD_SIZE_MAX_BYTES <= CHUNK_SIZE_MAX_BYTES
    assert spool.RECORD_BYTES_MAX <= records.RECORD_SIZE_MAX_BYTES


def test_a_step_has_no_rank_whose_output_could_not_be_read() -> None:
    assert steps.NUMBERS_MAX <= NUMBERS_MAX

"""The kernel's words: layouts as include/uapi/linux/fuse.h has them, and no bytes that make the parser fail."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beo.tree import kernel
from tests import fake_kernel as fake
from tests.fake_kernel import request

FACTS = kernel.Facts(7, 0o100644, 2, 1000, 1001, 5000, 16, 0x103, 1_000_000_001, -1, 2_000_000_002, 4096)


def op(opcode: int, body: bytes = b"") -> object:
    """Return what a request's body says."""
    return kernel.parse(request(opcode, body)).op


def test_a_request_says_of_whom_it_is() -> None:
    found = kernel.parse(request(fake.LOOKUP, b"name\0", unique=12, ino=34, uid=56, gid=78))
    assert found == kernel.Request(12, 34, 56, 78, 77, kernel.Lookup(b"name"))


def test_each_operation_is_read() -> None:
    assert op(fake.SYMLINK, b"name\0over/there\0") == kernel.Symlink(b"name", b"over/there")
    assert op(fake.MKNOD, struct.pack("=IIII", 0o10644, 5, 0o22, 0) + b"p\0") == kernel.Mknod(b"p", 0o10644, 5, 0o22)
    assert op(fake.MKDIR, struct.pack("=II", 0o755, 0o22) + b"d\0") == kernel.Mkdir(b"d", 0o755, 0o22)
    assert op(fake.RENAME, struct.pack("=Q", 9) + b"a\0b\0") == kernel.Rename(b"a", 9, b"b", 0)
    assert op(fake.RENAME2, struct.pack("=QII", 9, 2, 0) + b"a\0b\0") == kernel.Rename(b"a", 9, b"b", 2)
    assert op(fake.LINK, struct.pack("=Q", 9) + b"\xff\0") == kernel.Link(9, b"\xff")
    assert op(fake.OPEN, struct.pack("=II", 0o1002, 0)) == kernel.Open(0o1002)
    assert op(fake.CREATE, fake.create(b"n", 0o302, 0o100600, 0o77)) == kernel.Create(b"n", 0o302, 0o100600, 0o77)
    assert op(fake.READ, fake.read(5, 6)) == kernel.Read(5, 6)
    assert op(fake.WRITE, fake.write(5, b"data", 0o2001, 4)) == kernel.Write(5, b"data", 0o2001, 4)
    assert op(fake.RELEASE, fake.release(11, 2)) == kernel.Release(2, 11)
    assert op(fake.FLUSH, fake.flush(11)) == kernel.Flush(11)
    assert op(fake.READDIR, fake.read(3, 4096)) == kernel.Readdir(3, 4096, False)
    assert op(fake.READDIRPLUS, fake.read(3, 4096)) == kernel.Readdir(3, 4096, True)
    assert op(fake.SETLKW, fake.lock(8, 1, True, 2, 3)) == kernel.Lock(8, 2, 3, 1, 7, True, False, True)
    assert op(fake.GETLK, fake.lock(8, 0, False, 2, 3)) == kernel.Lock(8, 2, 3, 0, 7, False, True, False)
    assert op(fake.INTERRUPT, struct.pack("=Q", 4)) == kernel.Interrupt(4)
    assert op(fake.FALLOCATE, struct.pack("=QQQII", 0, 1, 2, 3, 0)) == kernel.Fallocate(1, 2, 3)
    assert op(fake.BATCH_FORGET, bytes(24)) == kernel.Forget()
    assert op(fake.LSEEK, bytes(24)) == kernel.Unknown(fake.LSEEK)
    assert op(1000) == kernel.Unknown(1000)


def test_times_may_lie_before_1970() -> None:
    valid = kernel.FATTR_ATIME | kernel.FATTR_MTIME
    numbers = valid, 0, 0, 0, 0, -1, 5, 0, 999_999_999, 6, 0, 0, 0, 0, 0, 0
    assert op(fake.SETATTR, struct.pack("=IIQQQqqqIIIIIIII", *numbers)) == kernel.Setattr(
        valid, 0, -1, 5_000_000_006, 0, 0, 0
    )


def test_the_flags_of_init_have_two_halves() -> None:
    assert op(fake.INIT, fake.init((1 << 36) | kernel.INIT_EXT)) == kernel.Init(7, 45, 1 << 17, 1 << 36 | 1 << 30)
    assert op(fake.INIT, fake.init(1 << 36)) == kernel.Init(7, 45, 1 << 17, 0)
    assert op(fake.INIT, struct.pack("=IIII", 7, 31, 1, 2)) == kernel.Init(7, 31, 1, 2)


@pytest.mark.parametrize(
    ("opcode", "body"),
    [
        (fake.LOOKUP, b""),
        (fake.LOOKUP, b"without an end"),
        (fake.LOOKUP, b"\0"),
        (fake.LOOKUP, b"a/b\0"),
        (fake.RENAME, bytes(8) + b"only one\0"),
        (fake.RENAME, bytes(8) + b"a\0../b\0"),
        (fake.MKDIR, b"\0\0"),
        (fake.WRITE, fake.write(0, b"four")[:-1]),
        (fake.WRITE, fake.write(0, b"four") + b"!"),
        (fake.WRITE, fake.write((1 << 63) - 3, b"four")),
        (fake.READ, fake.read(1 << 63, 1)),
        (fake.SETLK, fake.lock(1, 3)),
        (fake.SETLK, fake.lock(1, 1, False, 5, 4)),
        (fake.SETLK, fake.lock(1, 1, False, 0, 1 << 63)),
    ],
)
def test_what_is_malformed_says_whose_it_is(opcode: int, body: bytes) -> None:
    with pytest.raises(kernel.Malformed) as caught:
        kernel.parse(request(opcode, body, unique=98))
    assert (caught.value.unique, caught.value.opcode) == (98, opcode)


def test_a_length_that_is_wrong_is_malformed() -> None:
    for data in (b"", bytes(39), request(fake.GETATTR) + b"!", request(fake.GETATTR, b"12345678")[:-1]):
        with pytest.raises(kernel.Malformed):
            kernel.parse(data)
    short = bytearray(request(fake.GETATTR))
    struct.pack_into("=H", short, 36, 1)  # 8 bytes of extension in a request that has no body
    with pytest.raises(kernel.Malformed, match="extension"):
        kernel.parse(bytes(short))


@given(st.binary(max_size=200))
def test_no_bytes_make_the_parser_fail(data: bytes) -> None:
    try:
        kernel.parse(data)
    except kernel.Malformed:
        pass


@given(st.integers(0, 60), st.binary(max_size=150))
def test_no_body_makes_the_parser_fail(opcode: int, body: bytes) -> None:
    try:
        unique = kernel.parse(request(opcode, body)).unique
    except kernel.Malformed as error:
        unique = error.unique
    assert unique == 2


# ---- replies


def test_replies_are_as_the_kernel_reads_them() -> None:
    attr = 7, 5000, 16, 1, -1, 2, 1, 999_999_999, 2, 0o100644, 2, 1000, 1001, 0x103, 4096, 0
    layout = "QQQqqqIIIIIIIIII"
    entry = kernel.entry_out(FACTS, 1.5, 0.25)
    assert len(entry) == 128
    assert struct.unpack("=QQQQII" + layout, entry) == (7, 0, 1, 0, 500_000_000, 250_000_000, *attr)
    assert struct.unpack("=QII" + layout, kernel.attr_out(FACTS, 0.0)) == (0, 0, 0, *attr)
    assert len(kernel.attr_out(FACTS, 0.0)) == 104
    assert struct.unpack("=QII", kernel.open_out(7, 3)) == (7, 3, 0)
    assert struct.unpack("=II", kernel.write_out(5)) == (5, 0)
    room = kernel.statfs_out(100, 50, 10, 5, 4096, 255)
    assert len(room) == 80 and struct.unpack("=5Q4I24x", room) == (100, 50, 50, 10, 5, 4096, 255, 4096, 0)
    assert struct.unpack("=QQII", kernel.lk_out(1, 2, 3, -1)) == (2, 3, 1, 0xFFFFFFFF)
    told = kernel.init_out(40, 1 << 36 | 1 << 30, 4096, 1 << 20, 256, 64)
    assert len(told) == 64
    assert struct.unpack("=IIIIHHIIHHI28x", told) == (7, 40, 4096, 1 << 30, 64, 48, 1 << 20, 1, 256, 0, 1 << 4)
    assert kernel.error(9, 2) == struct.pack("=IiQ", 16, -2, 9)
    assert kernel.reply(9, b"body") == struct.pack("=IiQ", 20, 0, 9) + b"body"


def test_entries_of_directories_are_padded() -> None:
    found = kernel.dirent(7, 3, 0o40755, b"nine char")
    assert len(found) == 40 and struct.unpack_from("=QQII9s", found) == (7, 3, 9, 4, b"nine char")
    plus = kernel.direntplus(FACTS, 7, 3, 0o100644, b"n", (1.0, 1.0))
    assert len(plus) == kernel.DIRENTPLUS_BYTES + 8 == 160
    assert struct.unpack_from("=Q", plus) == (7,) and plus[128:] == kernel.dirent(7, 3, 0o100644, b"n")
    assert kernel.direntplus(None, 7, 1, 0o40755, b".", (1.0, 1.0))[:128] == bytes(128)


def test_notices() -> None:
    assert kernel.invalid_attr(7) == struct.pack("=IiQQqq", 40, 2, 0, 7, -1, 0)
    assert kernel.invalid_names() == struct.pack("=IiQ", 16, 8, 0)

"""The verbs about the tree of files: ls, cat, get, put, rm, mkdir, mv, df."""

from __future__ import annotations

import errno
import os
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click
import msgspec

from beo import table, units
from beo.cli.group import Verb, option
from beo.cli.tables import listing, show
from beo.client import Cluster
from beo.errors import EXIT_FAILED, BeoError, Conflict, NotFound, Refused, UsageError
from beo.tree import plans
from beo.tree import words as w
from beo.tree.files import Files, new_tag
from beo.tree.locate import session

PIECE_BYTES = 1 << 20  # read from a local file at a time
FAILURES_SHOWN_MAX = 20

COLUMNS = (
    table.Column("mode"),
    table.Column("links"),
    table.Column("owner"),
    table.Column("group"),
    table.Column("size", lambda value: units.approximate_size(value) if isinstance(value, int) else "-"),
    table.Column("changed"),
    table.Column("name"),
)


@contextmanager
def _tree() -> Iterator[Files]:
    """The tree of this shell's cluster, for who runs this."""
    cluster = Cluster()
    caller = w.Caller(os.geteuid(), os.getegid(), tuple(os.getgroups()))
    with Files(session(cluster.home, cluster.secret()), caller) as files:
        try:
            yield files
        except OSError as error:
            if error.filename is None:
                raise
            raise _told(error) from None


def _told(error: OSError) -> BeoError:
    what, why = f"{error.filename}", error.strerror or ""
    if error.errno == errno.ENOENT:
        return NotFound(what, why, "see what is there with 'beo ls'")
    if error.errno in (errno.EPERM, errno.EACCES):
        return Refused(what, why, "ask its owner, see 'beo ls -l'")
    return Conflict(what, why, "")


def _in_tree(path: str) -> str:
    return "/" + path.lstrip("/")


def _within(folder: str, name: str) -> str:
    return f"{folder.rstrip('/')}/{name}"


# ---- looking


@click.command(
    cls=Verb,
    examples=[
        ("beo ls", "what is at the top"),
        ("beo ls -l results", "with owners, sizes and times"),
        ("beo ls --json results", "for a program"),
    ],
)
@click.argument("path", default="/")
@option("-l", "--long", is_flag=True, help="Modes, owners, sizes and times, too.")
@listing
def ls(path: str, long: bool, fields: str, as_json: bool, quiet: bool) -> None:
    """List what is in a directory of the tree (default: the top one).

    PATH is a path in the tree: a leading / may be left out.
    """
    with _tree() as files:
        entries = files.entries(_in_tree(path))
    if not (long or fields or as_json or quiet):
        for name, attr in entries:
            print(table.escape(name) + ("/" if attr.is_dir else ""))
        return
    show([_row(name, attr) for name, attr in entries], COLUMNS, fields, as_json, quiet, ("ino", "mtime_ns"))


def _row(name: str, attr: w.Attr) -> dict[str, object]:
    return {
        "mode": stat.filemode(attr.mode),
        "links": attr.nlink,
        "owner": _name_of("pwd", attr.uid),
        "group": _name_of("grp", attr.gid),
        "size": attr.size,
        "changed": time.strftime("%Y-%m-%d %H:%M", time.localtime(attr.mtime_ns / 1e9)),
        "name": name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace"),
        "ino": attr.ino,
        "mtime_ns": attr.mtime_ns,
    }


def _name_of(kind: str, number: int) -> str:
    import grp
    import pwd

    try:
        return pwd.getpwuid(number).pw_name if kind == "pwd" else grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)


@click.command(cls=Verb, examples=[("beo cat results/log.txt | less", "look into a file")])
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
def cat(paths: tuple[str, ...]) -> None:
    """Print files of the tree, one after the other, byte for byte.

    PATH is a path in the tree: a leading / may be left out.
    """
    with _tree() as files:
        for path in paths:
            for piece in files.read(_in_tree(path)):
                sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()


@click.command(cls=Verb, examples=[("beo df", "how much room is left")])
@option("--json", "as_json", is_flag=True, help="One JSON object.")
def df(as_json: bool) -> None:
    """Tell how much room there is in the tree: that of the head which has less, as each has all of it."""
    with _tree() as files:
        space = files.space()
    used = space.total_bytes - space.free_bytes
    if as_json:
        row = {"total": space.total_bytes, "free": space.free_bytes, "files": space.files - space.free_files}
        print(msgspec.json.encode(row).decode())
        return
    share = 100 * used / space.total_bytes if space.total_bytes else 0.0
    total, free = units.approximate_size(space.total_bytes), units.approximate_size(space.free_bytes)
    print(f"{free} free of {total} ({share:.0f} % used), {space.files - space.free_files} files and directories")


# ---- changing


@click.command(cls=Verb, examples=[("beo mkdir -p data/2026", "with the directories above it")])
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@option("-p", "--parents", is_flag=True, help="Also those above it; no error where it exists.")
def mkdir(paths: tuple[str, ...], parents: bool) -> None:
    """Make directories in the tree.

    PATH is a path in the tree: a leading / may be left out.
    """
    mode = 0o777 & ~_umask()
    with _tree() as files:
        for path in paths:
            files.do(plans.make_folders(path, mode) if parents else plans.make_folder(_in_tree(path), mode))


@click.command(cls=Verb, examples=[("beo mv results/a results/b", "give a file another name")])
@click.argument("old")
@click.argument("new")
def mv(old: str, new: str) -> None:
    """Move a file or directory of the tree from OLD to NEW, into NEW where that is a directory.

    Both are paths in the tree: a leading / may be left out.
    """
    with _tree() as files:
        target = _target(files, _in_tree(new), _in_tree(old), new.endswith("/"))
        files.rename(_in_tree(old), target)


@click.command(
    cls=Verb,
    examples=[("beo rm results/log.txt", "remove a file"), ("beo rm -r results", "a directory, with all in it")],
)
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@option("-r", "--recursive", is_flag=True, help="Directories too, with everything in them.")
@option("-f", "--force", is_flag=True, help="No error where a path isn't there.")
def rm(paths: tuple[str, ...], recursive: bool, force: bool) -> None:
    """Remove files of the tree. It is not asked again, and nothing brings them back.

    PATH is a path in the tree: a leading / may be left out.
    """
    with _tree() as files:
        for path in map(_in_tree, paths):
            if not path.strip("/"):
                raise UsageError("/ can't be removed", "it is the tree", "name what is in it")
            try:
                found = files.stat(path, follow=False)
            except FileNotFoundError:
                if force:
                    continue
                raise
            if found.is_dir and not recursive:
                raise UsageError(f"{path} is a directory", "", "say -r to remove it with all in it")
            _remove(files, path, found)


def _remove(files: Files, path: str, found: w.Attr) -> None:
    """Remove a file, or a directory from below."""
    levels = [[(path, found)]]
    while folders := [at for at, attr in levels[-1] if attr.is_dir]:
        below = []
        for at, (_, result) in zip(folders, files.in_order(map(plans.listing, folders)), strict=True):
            below += [(_within(at, name), attr) for name, attr in _fine(result)]
        levels.append(below)
    for level in reversed(levels):
        for _, result in files.do_all(plans.remove(at) for at, _ in level):
            if not isinstance(result, FileNotFoundError):
                _fine(result)


def _fine(result: Any) -> Any:
    if isinstance(result, OSError):
        raise result
    return result


def _target(files: Files, path: str, source: str, must_be_dir: bool) -> str:
    """Where something goes that is to go to `path`: into it, where that is a directory."""
    try:
        into = files.stat(path).is_dir
    except FileNotFoundError:
        into = False
    if must_be_dir and not into:
        raise plans.failure(errno.ENOENT, path)
    return _within(path, os.path.basename(source.rstrip("/"))) if into else path


# ---- from and to this machine


@click.command(
    cls=Verb,
    examples=[
        ("beo put data.csv /", "to the top of the tree"),
        ("beo put -v case/ runs", "a directory, with everything in it"),
    ],
    exits=[("1", "some files could not be read or written; the others are there")],
)
@click.argument("sources", nargs=-1, required=True, metavar="FILE...")
@click.argument("path")
@option("-v", "--verbose", is_flag=True, help="Print each name.")
def put(sources: tuple[str, ...], path: str, verbose: bool) -> None:
    """Copy files and directories of this machine into the tree.

    They go into PATH where that is a directory, else PATH is the copy's name. A leading / may be left out. Modes and
    times of change are kept, owners are who runs this; symbolic links stay links. A file is replaced as a whole: who
    reads it meanwhile sees the old one. When it returns, everything is on the disks of all heads that are in step.
    """
    with _tree() as files:
        copy = _Copy(verbose)
        target = _in_tree(path)
        if len(sources) > 1 and not files.stat(target).is_dir:
            raise UsageError(f"{path} is no directory", f"{len(sources)} files are to go there", "make it first")
        for source in sources:
            if not os.path.lexists(source):
                raise NotFound(source, "no such file or directory", "see 'ls'")
            copy.put(files, source, _target(files, target, os.path.abspath(source), path.endswith("/")))
    copy.end()


@click.command(
    cls=Verb,
    examples=[
        ("beo get results/out.csv .", "a file, to here"),
        ("beo get results /tmp", "a directory, with everything in it"),
    ],
    exits=[("1", "some files could not be read or written; the others are there")],
)
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.argument("target", metavar="FILE")
@option("-v", "--verbose", is_flag=True, help="Print each name.")
def get(paths: tuple[str, ...], target: str, verbose: bool) -> None:
    """Copy files and directories of the tree to this machine.

    They go into FILE where that is a directory, else FILE is the copy's name. Modes and times of change are kept;
    symbolic links stay links.
    """
    with _tree() as files:
        copy = _Copy(verbose)
        if len(paths) > 1 and not os.path.isdir(target):
            raise UsageError(f"{target} is no directory", f"{len(paths)} files are to go there", "make it first")
        for path in map(_in_tree, paths):
            into = os.path.isdir(target)
            name = os.path.basename(path.rstrip("/")) or "tree"
            copy.get(files, path, os.path.join(target, name) if into else target)
    copy.end()


def bring(path: str, folder: str) -> None:
    """Copy all that is in a directory of the tree into a folder of this machine; nothing where it isn't there."""
    copy = _Copy(verbose=False)
    with _tree() as files:
        try:
            entries = files.entries(path)
        except FileNotFoundError:
            return
        for name, _ in entries:
            copy.get(files, _within(path, name), os.path.join(folder, name), follow=False)
    copy.end()


class _Copy:
    """Copies many files, and tells at the end which ones failed."""

    def __init__(self, verbose: bool) -> None:
        self._verbose = verbose
        self._failures: list[str] = []

    def end(self) -> None:
        """Tell what failed, if anything did."""
        if not self._failures:
            return
        for text in self._failures[:FAILURES_SHOWN_MAX]:
            print(f"beo: {table.escape(text)}", file=sys.stderr)
        if len(self._failures) > FAILURES_SHOWN_MAX:
            print(f"beo: and {len(self._failures) - FAILURES_SHOWN_MAX} more", file=sys.stderr)
        sys.exit(EXIT_FAILED)

    def _failed(self, error: OSError) -> None:
        self._failures.append(f"{error.filename}: {error.strerror}")

    def _tell(self, path: str) -> None:
        if self._verbose:
            print(table.escape(path))

    def put(self, files: Files, source: str, target: str) -> None:
        """Copy from here to the tree."""
        if not os.path.isdir(source) or os.path.islink(source):
            for _, result in files.do_all(self._puts([(source, target)])):
                self._note(result)
            return
        mode = stat.S_IMODE(os.stat(source).st_mode)
        files.mkdir(target, mode | stat.S_IWUSR | stat.S_IXUSR, exist_ok=True)
        below: list[tuple[str, str]] = []
        for at, folders, names in os.walk(source, onerror=self._failed):
            there = target if at == source else _within(target, os.path.relpath(at, source))
            links = [name for name in folders if os.path.islink(os.path.join(at, name))]
            plans_of_folders = [
                plans.make_folder(_within(there, name), self._mode(os.path.join(at, name)), exist_ok=True)
                for name in folders
                if name not in links
            ]
            for _, result in files.do_all(plans_of_folders):
                self._note(result)
            below += [(os.path.join(at, name), _within(there, name)) for name in [*names, *links]]
        for _, result in files.do_all(self._puts(below)):
            self._note(result)

    def _mode(self, path: str) -> int:
        return stat.S_IMODE(os.stat(path).st_mode) | stat.S_IWUSR | stat.S_IXUSR

    def _puts(self, pairs: list[tuple[str, str]]) -> Iterator[plans.Plan[Any]]:
        for source, target in pairs:
            try:
                found = os.lstat(source)
                if stat.S_ISLNK(found.st_mode):
                    plan: plans.Plan[Any] = plans.make_link(os.readlink(source), target, new_tag())
                elif stat.S_ISREG(found.st_mode):
                    pieces = _pieces(source)
                    next(pieces)  # opens it: who can't be read is told of before anything is made
                    mode = stat.S_IMODE(found.st_mode)
                    plan = plans.write(target, pieces, new_tag(), mode, found.st_mtime_ns)
                else:
                    raise OSError(0, "neither file, directory nor symbolic link: left out", source)
            except OSError as error:
                self._failed(error)
                continue
            self._tell(target)
            yield plan

    def _note(self, result: Any) -> None:
        if isinstance(result, OSError):
            self._failed(result)

    def get(self, files: Files, path: str, target: str, follow: bool = True) -> None:
        """Copy from the tree to here. follow: where a link at that path leads to."""
        found = files.stat(path, follow=follow)
        todo = [(path, found, target)]
        folders: list[tuple[str, w.Attr]] = []
        while todo:
            at, attr, here = todo.pop()
            try:
                if attr.is_dir:
                    os.makedirs(here, exist_ok=True)
                    folders.append((here, attr))
                    todo += [(_within(at, name), one, os.path.join(here, name)) for name, one in files.entries(at)]
                elif stat.S_ISLNK(attr.mode):
                    led_to = files.do(plans.target(attr.ino, at))
                    if os.path.lexists(here):
                        os.unlink(here)
                    os.symlink(led_to, here)
                elif stat.S_ISREG(attr.mode):
                    self._get(files, at, attr, here)
                else:
                    raise OSError(0, "neither file, directory nor symbolic link: left out", at)
                self._tell(here)
            except OSError as error:
                if error.filename is None:
                    error.filename = here
                self._failed(error)
        for here, attr in reversed(folders):  # their times change with what is put into them
            os.chmod(here, stat.S_IMODE(attr.mode) & 0o777)
            os.utime(here, ns=(attr.mtime_ns, attr.mtime_ns))

    def _get(self, files: Files, path: str, attr: w.Attr, here: str) -> None:
        hidden = os.path.join(os.path.dirname(here) or ".", f".{os.path.basename(here)[:200]}.{new_tag()}~")
        try:
            with open(hidden, "xb") as file:
                for piece in files.read(path):
                    file.write(piece)
            os.chmod(hidden, stat.S_IMODE(attr.mode) & 0o777)
            os.utime(hidden, ns=(attr.mtime_ns, attr.mtime_ns))
            os.replace(hidden, here)
        except BaseException:
            if os.path.lexists(hidden):
                os.unlink(hidden)
            raise


def _pieces(path: str) -> Iterator[bytes]:
    """Yield nothing once the file is open, then its bytes."""
    with open(path, "rb") as file:
        yield b""
        while piece := file.read(PIECE_BYTES):
            yield piece


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask

"""Programs that know nothing of checkpoints, moved by CRIU: dump a tree of processes into a folder, and restore it.

    dump(holder, folder)         the program below a holder (holder.py) is in the folder, and no longer alive
    python -I holder.py FOLDER -- PROGRAM ...       it goes on from there, in another warden, on another node

Either the dump is whole and sealed (by a manifest, written last) and the program has ended, or the program runs on
undisturbed, the folder is empty and `CannotDump` says why. The folder must be root's: who can write images can be root.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import xxhash

from beo.errors import EXIT_CONFLICT, EXIT_INTERNAL, BeoError, reason
from beo.worker import ranks

FORMAT = 1
SEAL = "beo.json"
"""The manifest: what belongs to the dump, with sizes and checksums. Where it is missing, there is no dump."""
DUMPED = "dumped"
"""Written when all images are, an instant before the program is ended: its holder then knows that it was halted."""
CARRIED = "carried.tar"
UNREAD = "stdin.unread"
TALK = "pmi.talk"
"""Of a rank: who has spoken last on its PMI socket, and by the file's age when."""
ASKED, ANSWERED = b"?", b"."
_BESIDE = (DUMPED, CARRIED, UNREAD, TALK)

CHECK_S = 30.0
DUMP_MAX_S = 600.0
"""A dump, or a restore, that takes longer hangs."""
GHOST_MAX = "4095M"
"""Largest deleted file that travels with who has it open (CRIU's own bound is 1 MiB, MPI's shared memory is more)."""
BLOCK_BYTES = 8 << 20
STANDARD = 3  # descriptors whose other ends are the warden's

LAST_PID = "/proc/sys/kernel/ns_last_pid"
_HERE = Path(__file__).resolve().parent
FETCHED = _HERE.parent.parent / "build" / "criu" / "criu"
"""Where `make criu` puts one."""
CURE = "make criu, or install one that passes 'criu check'"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Where root's programs are: a job's own PATH must not choose what runs as root."""


class NoCriu(BeoError):
    """There is no criu here that works on this kernel."""

    exit_code: ClassVar[int] = EXIT_CONFLICT


class CannotDump(BeoError):
    """The program can't be dumped; it runs on as if nobody had tried."""

    exit_code: ClassVar[int] = EXIT_CONFLICT


class CannotRestore(BeoError):
    """The program can't go on here from what was dumped; the dump is as it was."""

    exit_code: ClassVar[int] = EXIT_CONFLICT


class SpoiltDump(BeoError):
    """The dump isn't what was written."""

    exit_code: ClassVar[int] = EXIT_INTERNAL


# What CRIU's log says -> what that means. The first that fits tells; there is always the log's own first error.
_MEANINGS = (
    (r"No space left|ENOSPC|write.*img.*: -28|status=28|Can't write \d+ bytes", "the images' folder is full"),
    (r"io_uring|send_fds failed \(-22\)", "it uses io_uring"),  # whose descriptors no socket passes on
    (r"chr \d+:\d+|\(/dev/[^)]*\)|device", "it has a device open"),
    (r"tty|TTY", "it has a terminal open"),
    (r"[Cc]onnected TCP|In-flight connection|tcp.*established|--tcp-established", "it has a network connection open"),
    (r"sockets: Can't get", "it has a network socket, which this criu can't take apart on this kernel"),
    (r"inotify|fsnotify|irmap|handle", "it watches a file that can't be found again by name"),
    (
        r"unix.*(external|peer|half)|(external|peer|half).*unix|[Ee]xternal socket",
        "it is connected to a process outside",
    ),
    (r"SysVIPC|sysvipc", "it has shared memory of System V"),
    (
        r"[Pp]acket socket|netlink|Unsupported.*socket|unsupported.*socket",
        "it has a socket of a kind that doesn't travel",
    ),
    (r"CPU.*(capabil|instruction)|cpu:.*fail|cpuinfo", "this processor lacks what that of the dump had"),
    (r"[Gg]host file.*limit|--ghost-limit", f"it has a deleted file of more than {GHOST_MAX} open"),
    (r"Can't get rlimit", "it is another user's, and root lacks CAP_SYS_RESOURCE here"),
    (r"bad size|size mismatch|File .* has bad", "a file it has open has changed since"),
    (r"Can't open file .* on restore|No such file", "a file it has open isn't here"),
    (r"File exists|[Pp]id.*(busy|exist|match)|Can't fork for", "a number of its processes is taken"),
    (r"ptrace|seize|SEIZE", "its processes can't be stopped: another traces them"),
)


def meaning(log: str) -> str:
    """What the log of a CRIU that failed says, in a few words and then CRIU's own."""
    lines = [line for line in log.splitlines() if "Error" in line and "rlimit: Can't setup" not in line]  # a mere wish
    errors = [line.partition("): ")[2].strip() or line for line in lines]
    text = "\n".join(errors)
    own = (errors or log.split("\n")[-2:-1] or ["it left no word"])[0]
    for pattern, words in _MEANINGS:
        if found := re.search(pattern, text):
            line = next((line for line in errors if found.group() in line), own)
            return f"{words}; criu: {line}"
    return f"criu: {own}"


@cache
def find(asked: str = "") -> str:
    """A criu that passes its own check here, `asked` or else any; NoCriu otherwise, with what each one tried said."""
    if os.geteuid() != 0:
        raise NoCriu("no program can be moved from here", "only root may take processes apart", "run the agent as root")
    tried = []
    for place in (asked,) if asked else (shutil.which("criu", path=PATH), str(FETCHED)):
        if place and os.path.exists(place):
            try:
                done = _call([place, "check"], CHECK_S)
            except (OSError, subprocess.TimeoutExpired) as error:
                tried.append(f"{place}: {reason(error)}")
                continue
            if done.returncode == 0:
                return place
            lines = [line for line in done.stderr.splitlines() if "Error" in line] or ["it fails"]
            tried.append(f"{place}: {lines[0].partition('): ')[2] or lines[0]}")
        elif asked:
            tried.append(f"{place}: there is no such file")
    raise NoCriu("no criu here passes 'criu check'", "; ".join(tried) or "none is installed", CURE)


def dump(
    holder: int, folder: Path, carry: tuple[str, ...] = ("/dev/shm",), tcp: bool = False, criu: str = ""
) -> dict[str, Any]:
    """Write the program below a holder into a folder (made, 0700; emptied first) and end it; the manifest.

    holder: its number as this process sees it, in whatever namespaces it is. carry: folders of its own mount namespace
    that travel whole. tcp: keep connections; only where the address moves along. criu: see `find`. Blocks for the time
    of the dump.
    Raises NoCriu or CannotDump (the program runs on, the folder is empty).
    """
    criu = find(criu)
    folder = folder.resolve()
    try:
        root = held(holder)
        _prepare(folder)
        inner = numbers_of(root)[-1]
        pipes = pipes_of(root) | (lines_of(root) if tcp else {})
        _write(folder / "hook", _hook(folder, inner, carry), 0o700)
        argv = [criu, "dump", "--tree", str(inner), "--images-dir", str(folder), "--log-file", "dump.log", "-v2"]
        argv += ["--ghost-limit", GHOST_MAX, "--manage-cgroups=ignore", "--file-locks", "--link-remap"]
        argv += ["--action-script", str(folder / "hook"), "--network-lock", "nftables"]
        argv += ["--tcp-established"] if tcp else []
        for pipe in sorted(set(pipes.values())):
            argv += ["--external", pipe.replace("socket:", "unix")]
        words = _run([*words_into(root), *argv], folder / "dump.log")
        if words:
            raise CannotDump("the program can't be moved", words, "it runs on; see docs/criu.md for what can travel")
        (folder / "hook").unlink()
        return _seal(folder, {"root": inner, "pipes": pipes, "carry": list(carry)})
    except OSError as error:
        _clear(folder)
        raise CannotDump("the program can't be moved", reason(error), "it runs on; look after the folder") from None
    except CannotDump:
        _clear(folder)
        raise


def restore(folder: Path, descriptors: tuple[int, ...] = (0, 1, 2), criu: str = "") -> int:
    """Let the dumped program go on as a child of this process, which must be a subreaper; its number.

    descriptors: what becomes its stdin, stdout and stderr where these were a warden's pipes, and its PMI socket. In the
    namespaces of this process, where the numbers of its processes must be free. Raises NoCriu, SpoiltDump,
    CannotRestore.
    """
    criu = find(criu)
    folder = folder.resolve()
    manifest = verify(folder)
    _unpack(folder, manifest, descriptors[0])
    start_above(highest(manifest))  # criu's own, and all that the program starts later: it may move again
    argv = [criu, "restore", "--images-dir", str(folder), "--log-file", "restore.log", "-v2", "--restore-detached"]
    argv += ["--manage-cgroups=ignore", "--file-locks", "--tcp-established", "--ghost-limit", GHOST_MAX]
    argv += ["--network-lock", "nftables"]
    inherited: dict[str, int] = {}
    for number, pipe in manifest["pipes"].items():
        inherited.setdefault(pipe, descriptors[int(number)])
    copies = []
    try:
        for pipe, descriptor in inherited.items():  # its own standard ones are CRIU's
            copies.append(os.dup(descriptor))
            argv += ["--inherit-fd", f"fd[{copies[-1]}]:{pipe}"]
        words = _run(argv, folder / "restore.log", tuple(copies))
    except OSError as error:
        words = reason(error)
    finally:
        for copy in copies:
            os.close(copy)
    if words:
        raise CannotRestore("the program can't go on here", words, "try a node with the same files and processor")
    root: int = manifest["root"]
    return root


def is_sealed(folder: Path) -> bool:
    """Whether a whole dump is there."""
    return (folder / SEAL).exists()


def verify(folder: Path) -> dict[str, Any]:
    """The manifest of a dump whose every byte is as it was written; SpoiltDump otherwise."""
    cure = "start the program anew"
    try:
        manifest: dict[str, Any] = json.loads((folder / SEAL).read_bytes())
        body = manifest.pop("seal"), _digest_of(json.dumps(manifest, sort_keys=True).encode())
        files = manifest["files"]
        if manifest["format"] != FORMAT:
            raise SpoiltDump(f"the dump in {folder} has format {manifest['format']}", f"this is {FORMAT}", cure)
    except FileNotFoundError:
        raise SpoiltDump(f"no dump in {folder}", "its manifest is missing", cure) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SpoiltDump(f"the dump in {folder} is spoilt", f"its manifest: {reason(error)}", cure) from None
    if body[0] != body[1]:
        raise SpoiltDump(f"the dump in {folder} is spoilt", "its manifest has changed", cure)
    try:
        found = _digests(folder, list(files))
    except OSError as error:
        raise SpoiltDump(f"the dump in {folder} is spoilt", f"{error.filename}: {reason(error)}", cure) from None
    for name, was in files.items():
        if found[name] != was:
            raise SpoiltDump(f"the dump in {folder} is spoilt", f"{name} isn't what was written", cure)
    return manifest


def highest(manifest: dict[str, Any]) -> int:
    """The highest number that a process or thread of the dump has."""
    return max(int(name[5:-4]) for name in manifest["files"] if name.startswith("core-"))


def start_above(number: int) -> None:
    """Let processes begun in this PID namespace from now on have higher numbers; nothing where they have already."""
    with open(LAST_PID, "r+") as file:
        if int(file.read()) < number:
            file.seek(0)
            file.write(str(number))


def forget(folder: Path) -> None:
    """Remove a dump: its seal first, so that what is left of it is none."""
    (folder / SEAL).unlink(missing_ok=True)
    _clear(folder)


# -- the tree ------------------------------------------------------------------------------------------------------


def held(holder: int) -> int:
    """The program's first process, below its holder; CannotDump where there is no such, or more than one."""
    try:
        children = Path(f"/proc/{holder}/task/{holder}/children").read_text().split()
    except OSError:
        raise CannotDump("no program to move", f"process {holder} has gone", "look at 'beo queue'") from None
    if len(children) != 1:
        why = "it has left processes behind that aren't its children" if children else "it has ended, or not begun"
        raise CannotDump("the program can't be moved", why, "it goes on as it is")
    return int(children[0])


def numbers_of(pid: int) -> list[int]:
    """What a process is called in each PID namespace, from ours inwards."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("NSpid:"):
            return [int(word) for word in line.split()[1:]]
    return [pid]


def words_into(pid: int) -> list[str]:
    """The words before a command that is to run where the process is."""
    kinds = ("pid", "mnt", "net", "ipc", "uts")
    other = [kind for kind in kinds if os.readlink(f"/proc/{pid}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}")]
    return ["nsenter", "--target", str(pid), *(f"--{kind.replace('mnt', 'mount')}" for kind in other)] if other else []


def pipes_of(pid: int) -> dict[str, str]:
    """Which of a process's standard descriptors are pipes: number -> `pipe:[inode]`."""
    found = {}
    for number in range(STANDARD):
        try:
            target = os.readlink(f"/proc/{pid}/fd/{number}")
        except FileNotFoundError:
            continue  # closed
        if target.startswith("pipe:"):
            found[str(number)] = target
    return found


def lines_of(pid: int) -> dict[str, str]:
    """A rank's socket to its holder, through which its PMI goes: number -> `socket:[inode]`; none where it has none."""
    try:
        target = os.readlink(f"/proc/{pid}/fd/{ranks.PMI_FD}")
    except FileNotFoundError:
        return {}
    return {str(ranks.PMI_FD): target} if target.startswith("socket:") else {}


# -- the folder ----------------------------------------------------------------------------------------------------


def _hook(folder: Path, root: int, carry: tuple[str, ...]) -> str:
    """What CRIU runs while all is frozen and the images are written; where it fails, the program runs on."""
    words = [sys.executable, "-I", "-S", str(_HERE / "carried.py"), str(folder), str(root), *carry]
    log = shlex.quote(str(folder / "hook.log"))
    return f'#!/bin/sh\n[ "$CRTOOLS_SCRIPT_ACTION" = post-dump ] || exit 0\nexec {shlex.join(words)} 2>>{log}\n'


def _prepare(folder: Path) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_uid != os.geteuid():
        raise CannotDump("the program can't be moved", f"{folder} belongs to another user", "name a folder of root's")
    folder.chmod(0o700)
    if strange := sorted(path.name for path in folder.iterdir() if not _is_ours(path.name)):
        raise CannotDump("the program can't be moved", f"{folder} holds {strange[0]}", "name an empty folder")
    forget(folder)


def _is_ours(name: str) -> bool:
    return name.endswith((".img", ".log")) or name.startswith(("stats-", SEAL)) or name in (*_BESIDE, "hook")


def _clear(folder: Path) -> None:
    try:
        for path in folder.iterdir():
            if _is_ours(path.name):
                path.unlink()
    except OSError:
        pass  # nothing can be sealed in there all the same


def _write(path: Path, text: str, mode: int = 0o600) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "w") as file:
        file.write(text)


def _call(argv: list[str], limit_s: float, pass_fds: tuple[int, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run one of root's programs with nothing of a job's environment."""
    return subprocess.run(
        argv,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=limit_s,
        pass_fds=pass_fds,
        env={"PATH": PATH},
    )


def _run(argv: list[str], log: Path, pass_fds: tuple[int, ...] = ()) -> str:
    """Run criu; "" where it has done what it should, else why not."""
    try:
        done = _call(argv, DUMP_MAX_S, pass_fds)
    except subprocess.TimeoutExpired:
        return f"criu didn't come to an end in {DUMP_MAX_S:.0f} s"
    if done.returncode == 0:
        return ""
    text = "\n".join(path.read_text(errors="replace") for path in (log.parent / "hook.log", log) if path.exists())
    return meaning(text + "\n" + done.stderr)


def _unpack(folder: Path, manifest: dict[str, Any], stdin: int) -> None:
    """Lay out what travelled beside the images, by the same program that had packed it."""
    if not {CARRIED, UNREAD} & set(manifest["files"]):
        return
    argv = [sys.executable, "-I", "-S", str(_HERE / "carried.py"), str(folder)]
    done = subprocess.run(argv, stdin=stdin, capture_output=True, text=True, env={"PATH": PATH})
    if done.returncode:
        why = done.stderr.strip().rpartition("\n")[2]
        raise CannotRestore("the program can't go on here", f"its files in memory: {why}", "make room in /dev/shm")


def _seal(folder: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    os.truncate(folder / DUMPED, 0)  # here is the room for the seal
    names = sorted(path.name for path in folder.iterdir() if not path.name.endswith(".log") and path.name != DUMPED)
    whole = {"format": FORMAT, **manifest, "files": _digests(folder, names)}
    seal = _digest_of(json.dumps(whole, sort_keys=True).encode())
    try:
        _write(folder / f"{SEAL}.new", json.dumps({**whole, "seal": seal}))
        os.rename(folder / f"{SEAL}.new", folder / SEAL)
    except OSError as error:
        # The hook has reserved what this takes (see carried.py), so only a broken disk comes here.
        raise BeoError(
            "a program was ended and its dump can't be sealed", reason(error), "look after the disk"
        ) from None
    return whole


def _digests(folder: Path, names: list[str]) -> dict[str, list[Any]]:
    """Size and checksum of files; in threads, as reading and hashing leave Python's lock to others."""
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        return dict(zip(names, pool.map(lambda name: _digest(folder / name), names), strict=True))


def _digest(path: Path) -> list[Any]:
    digest, size = xxhash.xxh3_64(), 0
    buffer = memoryview(bytearray(BLOCK_BYTES))
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
            size += count
    return [size, digest.hexdigest()]


def _digest_of(data: bytes) -> str:
    return xxhash.xxh3_64_hexdigest(data)

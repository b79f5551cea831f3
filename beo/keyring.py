"""A user's own keys: one per cluster, made when first needed, in ~/.config/beo (or $XDG_CONFIG_HOME/beo), mode 0600."""

from __future__ import annotations

import os
import stat
from contextlib import suppress

from beo.errors import Refused

SECRET_LENGTH = 40


def path_of(cluster: str) -> str:
    """Where this user's secret key for a cluster is, or will be."""
    config = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return os.path.join(os.path.abspath(config), "beo", f"{cluster}.secret")


def check_private(status: os.stat_result, path: str) -> None:
    """Raise Refused unless a secret file is ours (or root's) and nobody else's."""
    mode = stat.S_IMODE(status.st_mode)
    if mode & 0o077:
        raise Refused(f"the key {path} is open to others (mode {mode:04o})", "", f"chmod 600 {path}")
    _check_owner(status, path)


def _check_owner(status: os.stat_result, path: str) -> None:
    """What another user owns he can read and replace; root may use everybody's."""
    if os.geteuid() and status.st_uid not in (0, os.geteuid()):
        raise Refused(f"{path} belongs to uid {status.st_uid}", "he could read or replace it", "use one of yours")


def check_folder(folder: str) -> None:
    """Raise Refused where others may put their own key in the place of ours."""
    status = os.stat(folder)
    mode = stat.S_IMODE(status.st_mode)
    _check_owner(status, folder)
    if mode & 0o022 and not mode & stat.S_ISVTX:
        raise Refused(f"others may write to {folder}", "they could replace the keys in it", f"chmod go-w {folder}")


def read(path: str) -> str:
    """Return the secret in a file, '' where there is none. Raises Refused where others can read or replace it."""
    try:
        check_folder(os.path.dirname(path))
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise Refused(f"can't read the key {path}", (error.strerror or "").lower(), "mend or remove it") from None
    try:
        check_private(os.fstat(fd), path)
        text = os.read(fd, SECRET_LENGTH + 2).decode(errors="replace").strip()
    finally:
        os.close(fd)
    if len(text) != SECRET_LENGTH:
        raise Refused(f"{path} holds no key", f"a key has {SECRET_LENGTH} characters", "remove it: a new one is made")
    return text


def keep(path: str, secret: str) -> str:
    """Write a new secret and return it; where another process was faster, return that one's."""
    folder = os.path.dirname(path)
    temporary = f"{path}.{os.getpid()}"
    try:
        os.makedirs(folder, 0o700, exist_ok=True)
        check_folder(folder)
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            os.write(fd, secret.encode() + b"\n")
            os.fsync(fd)
            os.link(temporary, path)
        except FileExistsError:
            return read(path)
        finally:
            os.close(fd)
            with suppress(OSError):
                os.unlink(temporary)
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise Refused(f"can't keep a key in {folder}", why, "set XDG_CONFIG_HOME to a folder of your own") from None
    return secret

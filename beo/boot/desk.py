"""What machines ask of a head over HTTP once they run something: to join, to keep what their console says, and what a
box needs that becomes a worker by `curl … | sh`.

    POST /join             {"mac", "boot", "key", "nonce", "proof"} → {"state", "node", "words", "nonce", "why"}
    POST /console/MAC      lines of its console
    GET  /boot.sh          the script, filled in for this cluster
    GET  /runtime/SHA256   the archive that it fetches

Nothing here decides anything: a join is passed on to the head that acts. HTTP is neither secret nor authenticated, so
nothing that it carries needs to be: a machine gets a word here, and believes what the head says to its own key.
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import msgspec

from beo import messages as ms
from beo import wire
from beo.boot import runtime
from beo.boot.request import BODY_MAX_BYTES, Request, Response
from beo.client import Cluster
from beo.config import Home
from beo.errors import BeoError, Conflict, NoHead, NotFound, Refused, UsageError, from_dict, reason
from beo.headnode import consoles
from beo.proof import HEX, mac_of

PATIENCE_S = 3.0  # for a head that acts: a take-over takes less
LOOK_S = 0.5  # before the head is asked again for machines, where one speaks that wasn't among them
MAKE_AGAIN_S = 60.0  # looking whether there is another runtime by now takes a tenth of a second, and anybody may ask
SCRIPT = Path(__file__).with_name("boot.sh")
SHA256_LENGTH = 64
HOST_LENGTH_MAX = 100
STATUS: dict[type[BeoError], int] = {UsageError: 400, Refused: 403, NotFound: 404, Conflict: 409, NoHead: 503}


class Evidence(msgspec.Struct, frozen=True):
    """The body of a join. nonce and proof: where the answer before has asked for a proof."""

    mac: str
    boot: str
    key: str
    nonce: str = ""
    proof: str = ""


class Desk:
    """The handlers of one head's cluster; they may be called from several threads."""

    def __init__(self, home: Home, kept: Path | None = None) -> None:
        """Take the cluster's folder, in which its admin key is. kept: where consoles go; by default the head's."""
        self._home = home
        self._cluster = Cluster(home)
        self._lock = threading.Lock()  # a client is for one thread at a time
        self._kept = kept or home.head / "consoles"
        self._known: set[str] = set()
        self._looked_s = float("-inf")
        self._making = threading.Lock()
        self._made_s = float("-inf")

    def handle(self, request: Request) -> Response | None:
        """Answer what is meant for this desk; None: it is somebody else's."""
        first, _, rest = request.path.lstrip("/").partition("/")
        try:
            match request.method, first, rest:
                case "POST", "join", "":
                    return self._join(request)
                case "POST", "console", mac:
                    return self._console(mac, request)
                case "GET" | "HEAD", "boot.sh", "":
                    return self._script(request)
                case "GET" | "HEAD", "runtime", sha256:
                    return self._runtime(sha256)
        except BeoError as error:
            return failure(error)
        return None

    def close(self) -> None:
        """Close the connection to the head."""
        with self._lock:
            self._cluster.close()

    def _join(self, request: Request) -> Response:
        if len(request.body) > BODY_MAX_BYTES:
            raise UsageError(f"a join of {len(request.body)} bytes", f"it has {BODY_MAX_BYTES} at most", "say less")
        try:
            said = msgspec.json.decode(request.body, type=Evidence)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise UsageError("this is no join", str(error).lower()[:200], "update the machine's image") from None
        wish = ms.JoinMachine(said.mac, said.boot, said.key, request.peer, said.nonce, said.proof)
        with self._lock:
            answer = self._cluster.request(wish, PATIENCE_S)
        if not isinstance(answer, ms.JoinedIs):
            raise Conflict("the head has another beo", f"it answers with {type(answer).__name__}", "update it")
        told = {field: getattr(answer, field) for field in answer.__struct_fields__}
        return Response(200, msgspec.json.encode(told), "application/json")

    def _console(self, mac: str, request: Request) -> Response:
        mac = mac_of(mac)
        if len(request.body) > BODY_MAX_BYTES:
            raise UsageError(f"{len(request.body)} bytes", f"send {BODY_MAX_BYTES} at a time", "send less")
        if not self._is_known(mac):
            raise NotFound(f"no machine with the MAC address {mac}", "none such is on record", "boot it from here")
        try:
            with self._lock:
                consoles.append(self._kept, mac, request.body)
        except OSError as error:
            raise Conflict("the head can't keep this", reason(error), "free space on its disk") from None
        return Response(204)

    def _is_known(self, mac: str) -> bool:
        if mac not in self._known and time.monotonic() > self._looked_s + LOOK_S:
            self._looked_s = time.monotonic()
            with self._lock:
                self._known = {view.mac for view in self._cluster.machines(PATIENCE_S)}
                consoles.keep_only(self._kept, self._known)
        return mac in self._known

    def _script(self, request: Request) -> Response:
        return Response(200, script(self._home, _base(request)).encode(), "text/x-shellscript")

    def _runtime(self, sha256: str) -> Response:
        if len(sha256) != SHA256_LENGTH or not HEX.issuperset(sha256):
            raise UsageError("this is no runtime's name", "", "type the line that 'beo token --boot' prints")
        path = runtime.path_of(self._home, sha256)
        if not path.is_file():
            self._make_runtime()
        if not path.is_file():
            why = "this head's beo or Python is another now"
            raise NotFound(f"no runtime {sha256[:8]}…", why, "make a new line with 'beo token --boot'")
        return Response(200, kind="application/gzip", file=str(path))

    def _make_runtime(self) -> None:
        """Make this head's own archive: after a take-over it may be the first who needs it, and it is the same one."""
        with self._making:
            if time.monotonic() > self._made_s + MAKE_AGAIN_S:
                self._made_s = time.monotonic()
                runtime.current(self._home)


def _base(request: Request) -> str:
    """Where this server is, as whoever asks calls it; its own words stand in a script that a shell reads."""
    host = request.host
    plain = host.isascii() and len(host) <= HOST_LENGTH_MAX and all(c.isalnum() or c in ".:-[]" for c in host)
    if not host or not plain:
        raise UsageError("the request names no host", "HTTP/1.1 has a Host line", "fetch it with curl, wget or busybox")
    return f"http://{host}"


def script(home: Home, base: str) -> str:
    """Return boot.sh for whoever reaches the server of boots at `base`, like http://10.0.0.1:7425."""
    text = SCRIPT.read_text()
    words = {"@BOOT@": base, "@HEADS@": " ".join(home.cluster().heads), "@MACHINE@": os.uname().machine}
    for word, value in words.items():
        text = text.replace(word, value)
    return text


def failure(error: BeoError) -> Response:
    """An error as an answer."""
    status = next((code for kind, code in STATUS.items() if isinstance(error, kind)), 500)
    return Response(status, msgspec.json.encode({"error": error.to_dict()}), "application/json")


def read_error(body: bytes, status: int) -> BeoError:
    """The error that an answer carries, or one that says that it carries none."""
    try:
        return from_dict(msgspec.json.decode(body, type=dict[str, dict[str, str]])["error"])
    except (msgspec.MsgspecError, KeyError, UnicodeDecodeError, RecursionError):
        return Conflict(f"the server of boots answers with {status}", "it says nothing more", "see its log")


def pin_of(text: str) -> str:
    """Read a head's public key: 40 characters of Z85, or 64 hex digits."""
    if len(text) == SHA256_LENGTH and HEX.issuperset(text.lower()):
        return wire.key_of_bytes(bytes.fromhex(text))
    return text

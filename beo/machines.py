"""How a cluster gets several machines: a head that others reach, tokens, workers and clients that join it.

Joining is one decision of the head (headnode/tokens.py); everything here may be cut short at any point and be done
again with the same token. The newcomer makes its own key first and never shows it: only its public half travels.
"""

from __future__ import annotations

import hashlib
import os
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

import msgspec

from beo import address, birth, local, question, supervisor, token, units, wire
from beo import messages as ms
from beo.config import ClusterFile, Home
from beo.errors import BeoError, Conflict, NoHead, Refused, TimedOut, UsageError
from beo.ha import witness
from beo.settings import HeadConfig

Echo = Callable[[str], object]

CONNECT_S = 3.0  # for the head's machine to answer at all
CLOCK_OFF_MAX_S = 60.0  # beyond, times in queues and logs mislead people
LINE_LENGTH_MAX = 256  # a token is shorter
HEADS_MAX = 2
TOKEN_S = 3_600.0  # how long a token lives unless told otherwise


# ---- the head's machine -----------------------------------------------------------------------------------------


def init_head(home: Home, listen: str, workers: int | None, slots: int | None, echo: Echo) -> None:
    """Make this machine the head of a cluster of several, start it, and print how a worker joins.

    listen: HOST, HOST:PORT or "" for what others most likely reach this machine by. workers: how many this machine has
    itself, None: as many as the last time, or none. A cluster that `beo up` has made goes on, with all its jobs.
    """
    if home.toml.exists() and home.config().head.listen != HeadConfig().listen:
        where = home.config().head.listen
        if listen and listen != where:
            raise Conflict(f"{home.toml} says [head] listen = {where!r}", f"not {listen}", "remove one of both")
        listen = where
    if home.who_file.exists() and home.who().name != local.FIRST:
        cure = "'beo head join --listen' moves it, 'beo head token' and 'beo token' let others join"
        raise Conflict(f"this machine is head {home.who().name} of its cluster", "", cure)
    plan, was_up = local.start(home, lambda last: _plan_head(home, last, listen, workers, slots))
    where = home.who().control
    echo(f"{'already up' if was_up else 'up'}: the head at {where}" + (f", {plan}" if plan.workers else ""))
    if where.startswith("127."):
        echo("no other machine can reach it there: that is for trying things out")
    text, _ = new_token(home, "worker", 1, TOKEN_S)
    echo(f"on another machine, within {units.format_duration(TOKEN_S)} (and for one machine: 'beo token' makes more):")
    echo(f"  {token_line(home, 'worker', text)}")
    if len(home.cluster().heads) < HEADS_MAX:
        text, _ = new_token(home, "head", 1, TOKEN_S)
        echo("or, so that a second head takes over when this machine dies ('beo head token' prints it again):")
        echo(f"  {token_line(home, 'head', text)}")


def _plan_head(home: Home, last: local.Plan | None, listen: str, workers: int | None, slots: int | None) -> local.Plan:
    if last and not last.serves:
        raise Conflict(
            f"this machine is {last.title} of another machine's cluster",
            str(home.path),
            "set BEO_DIR to another folder",
        )
    if not listen and last and last.listen:
        listen = last.listen
    else:
        host, port = address.split(listen, address.HEAD_PORT) if listen else (address.chosen(), address.HEAD_PORT)
        host = address.check_own(host)
        fixed = listen.endswith(f":{port}")
        listen = f"{host}:{port}" if fixed or is_free(home, host, port) else f"{host}:0"
    if last and workers is None:
        workers = last.workers
    base = msgspec.structs.replace(last, listen=listen) if last else local.Plan(0, 1, listen=listen)
    return local.choose(base, workers or 0, slots, base.head, base.agent)


def is_free(home: Home, host: str, port: int) -> bool:
    """Whether the usual port is free, or this very cluster's already."""
    with suppress(BeoError):
        if f"{host}:{port}" in home.cluster().heads:
            return True
    with suppress(OSError), socket.create_server((host, port)):
        return True
    return False


def token_line(home: Home, role: str, text: str) -> str:
    """The command to type where the newcomer is."""
    where = home.who().control if home.who_file.exists() else home.cluster().heads[0]
    match role:
        case "head":
            return f"beo head join {where} --token {text}"
        case "worker" | "witness":
            return f"beo {role} --head {where} --token {text}"
        case _:
            return f"beo login --head {where} --token {text}"


def boot_lines(home: Home, text: str, sha256: str, script: bytes) -> tuple[str, str]:
    """The command to type in a box that has no beo, and the same where somebody may sit between it and the head.

    script: boot.sh as the head serves it there. The second line has its digest, so that nobody can put in another.
    """
    url = f"{boot_url(home)}/boot.sh"
    words = f"--pin {sha256} --token {text}"
    digest = hashlib.sha256(script).hexdigest()
    checked = f's=$(curl -fsS {url}) && [ "$(printf \'%s\\n\' "$s" | sha256sum)" = "{digest}  -" ]'
    return f"curl -fsS {url} | sh -s -- {words}", f"{checked} && printf '%s\\n' \"$s\" | sh -s -- {words}"


def boot_url(home: Home) -> str:
    """Where machines reach this cluster's server of boots."""
    where = home.who().control if home.who_file.exists() else home.cluster().heads[0]
    return f"http://{where.rpartition(':')[0]}:{home.config().boot.port}"


def new_token(home: Home, role: str, uses: int, expires_s: float, user: str = "", uid: int = -1) -> tuple[str, int]:
    """Make a token and return its text and number. The head learns its public key only."""
    seed = os.urandom(token.SEED_BYTES)
    public = wire.public_of_bytes(token.secret_of(seed))
    wish = ms.MakeToken(public, role, user or birth.user_name(), uid, uses, expires_s)
    cluster = home.cluster()
    made = question.ask(cluster.heads, cluster.key, home.secret("admin"), wish, ms.TokensAre)
    return token.write(cluster.key, seed), made.tokens[0].number


# ---- a newcomer's machine ---------------------------------------------------------------------------------------


def join(
    home: Home,
    head: str,
    text: str,
    name: str,
    slots: int | None,
    echo: Echo,
    foreground: bool,
    rack: str | None = None,
) -> None:
    """Make this machine a worker, if it isn't one yet, and start it; return when the head has it.

    rack: where it stands; None: as the last time. Without head and text it is started again as it was. With foreground
    this process becomes its supervisor.
    """
    last = local.read_plan(home)
    if last and last.serves and (home.head / "journal.db").exists():
        raise Conflict(
            f"{home.path} has a cluster of its own, with a head", "", "set BEO_DIR to another folder for the worker"
        )
    if last and last.witness:
        raise Conflict(f"this machine is {last.title}", str(home.path), "set BEO_DIR to another folder for the worker")
    if text:
        name = _enrol_worker(home, head, text, name or (last.name if last and not last.serves else ""), echo)
    elif head:
        raise UsageError("--head without --token", "", "'beo token' prints both, on the head's machine")
    elif not last or last.serves:
        raise UsageError(
            "this machine belongs to no cluster yet", "", "type the line that 'beo token' prints on the head's machine"
        )
    elif name and name != last.name:
        raise UsageError(f"this machine is {last.name}", f"not {name}", "leave --name, or give it a token too")

    def choose(last: local.Plan | None) -> local.Plan:
        known = last if last and not last.serves else local.Plan(1, len(os.sched_getaffinity(0)), serves=False)
        place = known.rack if rack is None else rack
        base = msgspec.structs.replace(known, name=name or known.name, rack=place)
        return local.choose(base, None, slots, known.head, known.agent)

    if foreground:
        stay(home, choose(local.read_plan(home)))
    try:
        plan, was_up = local.start(home, choose)
    except TimedOut as error:
        why = f"{error.why}, but it has this machine's key" if text else error.why
        raise TimedOut(error.what, why, error.cure) from None
    slots_text = f"{plan.slots} slot{'s' * (plan.slots != 1)}"
    echo(f"{'already up' if was_up else 'up'}: {plan.name}, {slots_text}, of the cluster at {home.cluster().heads[0]}")
    if missing := lacking(home, plan.name):
        echo(f"it lacks {missing}: jobs that need that go elsewhere")
    if not was_up:
        echo("what to type next: 'beo down' ends it, 'beo up' starts it again, 'beo doctor' looks for faults")


def lacking(home: Home, name: str) -> str:
    """What a worker of this machine has told the head that it lacks, in words; "" where that isn't known."""
    cluster = home.cluster()
    try:
        answer = question.ask(cluster.heads, cluster.key, home.secret("worker"), ms.ListNodes(), ms.NodesAre, CONNECT_S)
    except BeoError:
        return ""
    said = next((node.facts.get(ms.LACKS, "") for node in answer.nodes if node.name == name), "").split()
    if os.geteuid():  # whether a criu works here takes its time to find out; without root, none does
        said.append("criu")
    titles = {"leash": "walls that end jobs with it", "tree": "the tree as a folder", "users": "other users"}
    return ", ".join(titles.get(word, word) for word in said)


def stay(home: Home, plan: local.Plan) -> NoReturn:
    """Become this machine's supervisor, as systemd and containers want it."""
    local.write_plan(home, plan)
    words = [sys.executable, "-P", "-m", "beo.local", "supervise", str(home.path), "--foreground"]
    os.execve(words[0], words, supervisor.environment(home))


def be_witness(home: Home, head: str, text: str, name: str, echo: Echo, foreground: bool) -> None:
    """Make this machine a witness, if it isn't one yet, and start it; return when a head answers.

    Without head and text it is started again as it was. A token given again to one whose state is damaged makes it
    another voter: what the former one had promised is void with its name.
    """
    last = local.read_plan(home)
    if last and not last.witness:
        what = "a head" if last.serves else last.title
        raise Conflict(f"this machine is {what} already", str(home.path), "set BEO_DIR to another folder")
    if text:
        if local.is_running(home):
            raise Conflict("this machine's witness is up", "", "'beo down' first")
        name = own_name(name or (last.witness if last else ""))
        answer, cluster = enrol(home, head, text, "witness", "witness", name, echo)
        path = witness.state_path(home)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        try:
            voice = witness.read(path)
        except BeoError:
            voice = None
        if voice is None or voice.voter.partition("/")[0] != answer.node:
            witness.write(path, witness.Voice(f"{answer.node}/{os.urandom(8).hex()}"))
        home.write_cluster(cluster)
        name = answer.node.rpartition(":")[2]
    elif head:
        raise UsageError("--head without --token", "", "'beo token --role witness' prints both, on a head's machine")
    elif not last:
        cure = "type the line that 'beo token --role witness' prints on a head's machine"
        raise UsageError("this machine is no witness yet", "", cure)
    elif name and name != last.witness:
        raise UsageError(f"this machine is {last.title}", f"not {name}", "leave --name, or give it a token too")
    plan = local.Plan(0, 1, serves=False, witness=name or (last.witness if last else ""))
    if foreground:
        stay(home, plan)
    _, was_up = local.start(home, lambda _: plan)
    echo(f"{'already up' if was_up else 'up'}: {plan.title}, for the heads at {' and '.join(home.cluster().heads)}")
    if not was_up:
        echo("what to type next: 'beo down' ends it, 'beo up' starts it again; 'beo ha status' there shows its vote")


def _enrol_worker(home: Home, head: str, text: str, name: str, echo: Echo) -> str:
    answer, cluster = enrol(home, head, text, "worker", "worker", own_name(name), echo)
    home.write_cluster(cluster)
    return answer.node


def own_name(name: str) -> str:
    """Return the name, or this machine's own where it is empty; raises UsageError where that is none."""
    name = name or socket.gethostname().partition(".")[0]
    if name in ("", "localhost"):
        raise UsageError(f"this machine calls itself {name!r}", "so do others", "give it a name with --name")
    return name


def login(home: Home, head: str, text: str, echo: Echo) -> None:
    """Give the user of this folder a key of his own, without a worker."""
    last = local.read_plan(home)
    if last and last.serves and (home.head / "journal.db").exists():
        raise Conflict(f"{home.path} has a cluster of its own, with a head", "", "set BEO_DIR to another folder")
    answer, cluster = enrol(home, head, text, "admin", "", "", echo)
    home.write_cluster(cluster)
    echo(f"you are {answer.user} ({answer.role}) of the cluster at {home.cluster().heads[0]}; try 'beo nodes'")


def enrol(
    home: Home, head: str, text: str, key: str, role: str, name: str, echo: Echo
) -> tuple[ms.EnrolledIs, ClusterFile]:
    """Have this folder's key (made here the first time) authorized; return that, and which cluster it is.

    role: what the token must be for; "": for a user, of whatever role.
    """
    if text == "-":  # so that it stands in no list of processes
        text = sys.stdin.readline(LINE_LENGTH_MAX)
    asked = token.read(text)
    if not head:
        raise UsageError("--token without --head", "", "'beo token' prints both, on the head's machine")
    host, port = address.split(head, address.HEAD_PORT)
    head = f"{address.resolve(host)}:{port}"
    birth.make_folder(home)
    known = home.cluster() if home.cluster_file.exists() else None
    if known and known.key != asked.head:
        raise Conflict(
            f"{home.path} belongs to another cluster",
            f"{known.cluster[:8]}… at {known.heads[0]}",
            "set BEO_DIR to another folder, or remove this one if that cluster is no more",
        )
    if known and head not in known.heads and local.is_running(home):
        raise Conflict(
            f"this machine's worker is up, with the head at {known.heads[0]}", f"not {head}", "'beo down' first"
        )
    if not (home.keys / f"{key}.secret").exists():
        home.write_secret(key, wire.new_keypair()[1])
    public = wire.public_of(home.secret(key))
    _check_reachable(head)
    asked_s = time.time()
    answer = question.ask((head,), asked.head, asked.secret, ms.Enrol(public, name, role), ms.EnrolledIs)
    check_clock(answer.time_s - (asked_s + time.time()) / 2, echo)
    if answer.role == "worker" and not name:
        raise Refused("this token is for a worker", "", "use 'beo worker'")
    return answer, cluster_file(answer, head, asked.head)


def cluster_file(answer: ms.EnrolledIs, head: str, key: str) -> ClusterFile:
    """Where all heads are; the one that has answered where we have found it."""
    control = {view.name: view.control for view in answer.heads}
    if head not in control.values():  # behind some other address, or of a beo that tells of no heads
        control[answer.head] = head
    bulk = {view.name: view.bulk for view in answer.heads} | {answer.head: answer.bulk}
    names = sorted(control)
    return ClusterFile(answer.cluster, tuple(control[name] for name in names), key, tuple(bulk[name] for name in names))


def check_clock(off_s: float, echo: Echo) -> None:
    """Say so where this machine's clock differs much from the head's, which is `off_s` ahead."""
    if abs(off_s) > CLOCK_OFF_MAX_S:
        way = "behind" if off_s > 0 else "ahead of"
        off = units.format_duration(int(abs(off_s)))
        echo(f"this machine's clock is {off} {way} the head's: set it, as by 'apt-get install -y chrony'")


def _check_reachable(head: str) -> None:
    host, _, port = head.rpartition(":")
    try:
        socket.create_connection((host, int(port)), CONNECT_S).close()
    except OSError as error:
        why = "no answer" if isinstance(error, TimeoutError) else (error.strerror or str(error)).lower()
        cure = f"see 'beo info' on the head's machine, and whether a firewall closes port {port} or the next one"
        raise NoHead(f"nobody answers at {head}", why, cure) from None

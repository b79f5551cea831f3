"""What a client's wish becomes: events for the journal and an answer. Pure: nothing here changes the state.

Whether the client may wish it at all was looked up before, in the table of permissions.py.

Each decider takes the tip (committed plus appended entries), so that two wishes that come in one turn see each other.
"""

from __future__ import annotations

import msgspec

from beo import events as ev
from beo import messages as ms
from beo import nodeset, selector
from beo.account import Account
from beo.errors import BeoError, Conflict, NotFound, Refused, UsageError
from beo.headnode.folds.jobs import KEYS_KEEP_S
from beo.headnode.model import ENDED, LEASHABLE, WAITING, Authorized, Holding, Job, Node
from beo.headnode.schedule import capacity, limits_of, narrow, open_to, place
from beo.headnode.state import State
from beo.settings import Config
from beo.spec import JobSpec, check, key_made_s
from beo.units import format_duration

KEY_LENGTH_MAX = 128
SIGNAL_MAX = 64
SELECT_MAX = 10_000  # jobs that one cancel may name: one journal entry each
GROUPS_MAX = 65_536  # the kernel's NGROUPS_MAX
NODES_MAX = 4_096
NAMED_MAX = 8  # groups named in one sentence
SLOTS_MAX = 65_536  # of one node
MEM_MAX_BYTES = 1 << 50
FACTS_MAX = 64  # that a node may tell of itself
TEXT_LENGTH_MAX = 256  # of anything that a node says of itself
RUNNING_MAX = 100_000  # attempts that one node may name

_Decision = tuple[list[ev.Event], ms.HeadAnswer]


class User(msgspec.Struct, frozen=True):
    """Who asks: name, role and uid (-1: any), from the key that the connection was made with.

    role: admin, user, worker, or token for a token's own key. node: the only one that a worker speaks for; "": those
    that have no key of their own. gids: his groups, if he has no account on the head's machine.
    """

    name: str
    role: str
    uid: int = -1
    node: str = ""
    gids: tuple[int, ...] = ()

    def may(self, job: Job) -> bool:
        """Whether a job is this user's own, or he is an admin."""
        return self.role == "admin" or self.name == job.user

    def may_see(self, job: Job | None) -> bool:
        """The same; a job that is off the record has no owner any more: it is the admins'."""
        return self.role == "admin" if job is None else self.may(job)


def user_of(state: State, key: str) -> User | None:
    """Who holds a key, or None: nobody known."""
    if key in state.tokens:  # also when it is of no use any more: its holder is told why
        return User(state.tokens[key].user, "token")
    known: Authorized | None = state.authorized.get(key)
    return User(known.user, known.role, known.uid, known.node, known.gids) if known else None


def find(state: State, number: int) -> Job:
    """Return a job; NotFound says what ids there are."""
    job = state.jobs.get(number)
    if job:
        return job
    if number < state.next_job and number > 0:
        raise NotFound(f"job {number} is not on record any more", "it ended long ago", "")
    last = state.next_job - 1
    raise NotFound(
        f"no job {number}", f"the last one is {last}" if last else "there is none yet", "see 'beo queue --all'"
    )


def pick(state: State, user: User, words: tuple[str, ...]) -> list[Job]:
    """Return the jobs that selector words mean, or raise NotFound. 'all' and 'last' mean the user's own."""
    chosen = selector.parse(words)
    own = chosen.word in ("all", "last")
    ids = (n for n, job in state.jobs.items() if not own or job.user == user.name)
    found, missing = chosen.pick(ids)
    if missing:
        find(state, missing[0])
    if not found and chosen.word == "last":
        raise NotFound("no last job", "you have submitted none yet", "see 'beo submit --help'")
    if not found and not chosen.word:
        raise NotFound(f"no job in {','.join(words)[:80]}", "", "see 'beo queue --all'")
    return [state.jobs[n] for n in found]


def check_key(key: str, what: str) -> None:
    """Raise UsageError for what can't be an idempotency key."""
    if not key or len(key) > KEY_LENGTH_MAX or not key.isprintable():
        raise UsageError(f"{what} has no usable key", f"1 to {KEY_LENGTH_MAX} printable characters", "use a new UUID")


def _groups(user: User, wish: ms.Submit, account: Account | None) -> tuple[tuple[int, ...], list[str]]:
    """The further groups that a job gets, and warnings; Refused for a first group that isn't the user's.

    What a user's own machine says about his groups is not believed: only those that the head's machine knows as his.
    """
    if user.role == "admin":
        return wish.groups, []
    real = account.gids if account and account.gids else user.gids
    if wish.gid not in real:
        why = f"{user.name}'s are {', '.join(map(str, real))}" if real else f"{user.name} has no account there"
        what = f"group {wish.gid} is not one of yours on the head's machine"
        raise Refused(what, why, "submit with a group of your own ('newgrp'), or ask the operator")
    foreign = sorted(set(wish.groups) - set(real))
    if not foreign:
        return wish.groups, []
    named = f"group{'s' * (len(foreign) > 1)} {', '.join(map(str, foreign[:NAMED_MAX]))}"
    left = f"{named} left out: not {user.name}'s on the head's machine"
    return tuple(gid for gid in wish.groups if gid in real), [left]


def check_room(state: State, owner: str, config: Config, more: int = 1, own_more: int = 1) -> None:
    """Raise Conflict where so many more jobs may not wait, or so many more of this owner."""
    if state.waiting + more > config.head.queued_max:
        raise Conflict(
            f"{state.waiting} jobs are queued already", "the limit is head.queued_max", "try later, or raise it"
        )
    limits = limits_of(state, config.users, owner)
    own = state.holdings.get(owner, Holding()).waiting
    if own + own_more > limits.queued_max:
        why = f"the limit is {config.users.where(owner)}.queued_max = {limits.queued_max}"
        raise Conflict(f"{own} jobs of {owner} are queued already", why, "wait for some, or ask an admin to raise it")


def check_priority(state: State, user: User, priority: int, config: Config) -> None:
    """Raise Refused where a user wants to jump the queue."""
    limits = limits_of(state, config.users, user.name)
    if priority > limits.priority_max:
        why = f"the limit is {config.users.where(user.name)}.priority_max = {limits.priority_max}"
        raise Refused(f"priority {priority} is above yours", why, "choose a lower one, or ask an admin")


def submit(
    state: State, user: User, wish: ms.Submit, config: Config, now_s: float, account: Account | None = None
) -> _Decision:
    """Take a job, once per key. account: the user's on the head's machine."""
    check_key(wish.key, "the submission")
    known = state.keys.get(wish.key)
    if known is not None:
        job = state.jobs.get(known.job)
        if job and not user.may(job):
            raise Refused("this submission key is in use by another user", "", "use a new one")
        return [], ms.SubmittedIs(known.job)
    made_s = key_made_s(wish.key)
    if made_s is not None and made_s <= max(now_s - KEYS_KEEP_S, state.keys_from_s):
        why = f"its key was made {format_duration(max(0, int(now_s - made_s)))} ago"
        raise UsageError("this submission is too old to be repeated", why, "submit anew, or set this machine's clock")
    if not all(0 <= number <= ms.ID_MAX for number in (wish.uid, wish.gid, *wish.groups)):
        raise UsageError("the submission has an impossible uid or gid", f"they are 0 to {ms.ID_MAX}", "update this beo")
    if user.role != "admin" and wish.uid != user.uid:
        raise Refused(f"{user.name}'s key can't submit for uid {wish.uid}", "", "submit as yourself")
    owner = _owner(state, user, wish)
    if len(wish.groups) > GROUPS_MAX:
        raise UsageError(f"{len(wish.groups)} groups", f"the limit is {GROUPS_MAX}", "leave some of them")
    spec = _placed(check(wish.spec), config)
    if spec.is_carrying and config.files.backend == "shared":
        what = f"--in and --out, where files are at {config.files.path} on every machine"
        raise Conflict(what, "what lies there needs no copy", "submit from a folder there, without them")
    check_room(state, owner, config)
    check_priority(state, user, spec.priority, config)
    groups, warnings = _groups(user, wish, account)
    if spec.errand:
        _check_errand(state, spec.errand, wish.uid)
    up = [node for node in state.nodes.values() if node.takes_work]
    job = Job(state.next_job, wish.key, owner, wish.uid, wish.gid, groups, spec, now_s)
    if up and not spec.errand and not place(job, open_to(job, capacity(up), narrow(up))):
        slots = sum(node.slots for node in up)
        has = f"the cluster has {slots} slots on {len(up)} nodes now: the job waits until it has more"
        is_still = place(job, capacity(up)) and spec.movable
        still = "no node can move programs now: the job waits for one that can, see 'beo show'"
        warnings.append(still if is_still else has)
    if spec.reservation:
        warnings += _check_reservation(state, job)
    if spec.requeue == "auto" and up and not any(node.facts.get("contain") in LEASHABLE for node in up):
        warnings.append("no node can contain a job (no PID namespaces): --requeue auto acts as confirm")
    event = ev.Submitted(state.next_job, wish.key, owner, wish.uid, wish.gid, groups, spec, now_s, wish.hold)
    return [event], ms.SubmittedIs(event.job, tuple(warnings))


def _check_reservation(state: State, job: Job) -> list[str]:
    """Refuse a job of a reservation that isn't its owner's to use; return warnings."""
    name = job.spec.reservation
    one = state.reservations.get(name)
    if not one:
        raise NotFound.among("reservation", name, state.reservations, "see 'beo reserve list'")
    if not one.has(job):
        whose = f"it is for {', '.join(one.users[:NAMED_MAX])}"
        raise Refused(f"{name} is not {job.user}'s to use", whose, "ask who made it, or submit without --reservation")
    nodes = [state.nodes[node] for node in one.nodes if node in state.nodes]
    if place(job, open_to(job, capacity(nodes), narrow(nodes))):
        return []
    slots = sum(node.slots for node in nodes)
    return [f"reservation {name} has {slots} slots on {len(nodes)} nodes: the job waits until it is over"]


def _placed(spec: JobSpec, config: Config) -> JobSpec:
    """Say of a job whether its folder is one at which nodes mount the tree: not all can."""
    folders = [folder.rstrip("/") for folder in config.files.mounts]
    in_tree = any(spec.cwd == folder or spec.cwd.startswith(f"{folder}/") for folder in folders)
    return msgspec.structs.replace(spec, in_tree=in_tree) if in_tree != spec.in_tree else spec


def _check_errand(state: State, name: str, uid: int) -> None:
    """Refuse an errand to a node that can't do it, since whoever copies files would rather know it now."""
    node = state.nodes.get(name)
    if not node:
        raise NotFound.among("node", name, state.nodes, "see 'beo nodes'")
    if node.state != "up":
        raise Conflict(f"{name} is {node.state}", "nothing can be copied to or from it", "see 'beo nodes'")
    if narrow([node]).owned.get(name, uid) != uid:
        raise Refused(f"{name} copies nothing for you", "beo doesn't run as root there", "ask the operator")


def _owner(state: State, user: User, wish: ms.Submit) -> str:
    """Whose the job will be: an admin may say so, of somebody who is known by that name and uid."""
    if not wish.user or wish.user == user.name:
        return user.name
    if user.role != "admin":
        raise Refused(f"{user.name}'s key can't submit for {wish.user[:80]}", "", "submit as yourself")
    known = {(found.user, found.uid) for found in state.authorized.values() if found.role in ("user", "admin")}
    if (wish.user, wish.uid) not in known and (wish.user, -1) not in known:
        why = f"with uid {wish.uid}"
        raise Refused(f"{wish.user[:80]} is no user of this cluster", why, "he comes by a door or a token first")
    return wish.user


def cancel(state: State, user: User, words: tuple[str, ...], now_s: float) -> tuple[list[ev.Event], list[Job]]:
    """End the chosen jobs; ended ones are left as they are. Returns those that were meant."""
    jobs = pick(state, user, words)
    acting = [job for job in jobs if job.state not in ENDED]
    if len(acting) > SELECT_MAX:
        raise UsageError(f"{len(acting)} jobs at once", f"the limit is {SELECT_MAX}", "cancel them in ranges")
    reason = f"cancelled by {user.name}"
    return [ev.CancelRequested(job.id, user.name, reason, now_s) for job in acting if not job.cancel], jobs


def signal(state: State, user: User, wish: ms.Signal, now_s: float) -> _Decision:
    """Signal a job's ranks, once per key. It cancels a queued job, as it would end a program about to start."""
    check_key(wish.key, "the signal")
    job = find(state, wish.job)
    if not 1 <= wish.signal <= SIGNAL_MAX:
        raise UsageError(f"no signal {wish.signal}", f"signals are 1 to {SIGNAL_MAX}", "")
    if job.state in ENDED or any(wish.key == asked.key for asked in job.signals):
        return [], ms.Done()
    if job.state in WAITING:
        return [ev.CancelRequested(job.id, user.name, f"cancelled by {user.name}", now_s)], ms.Done()
    event = ev.SignalRequested(
        job.id, job.attempt_number, job.signal_serial + 1, wish.signal, user.name, wish.key, now_s
    )
    return [event], ms.Done()


def declare_gone(state: State, user: User, name: str, now_s: float) -> _Decision:
    """Take the operator's word that a silent node is off."""
    node = state.nodes.get(name)
    if not node:
        raise NotFound.among("node", name, state.nodes, "see 'beo nodes'")
    if node.state != "lost":
        raise Conflict(f"{name} is {node.state}", "only a node that is lost can be declared off", "see 'beo nodes'")
    return [ev.NodeGone(name, node.incarnation, user.name, now_s)], ms.Done()


def join(state: State, wish: ms.Join, now_s: float) -> list[ev.Event] | None:
    """Take a node's introduction of itself; None: this incarnation of it is over."""
    if state.is_dead(wish.node, wish.incarnation):
        return None
    known = state.nodes.get(wish.node)
    if known and wish.incarnation == known.incarnation and not _differs(known, wish):
        return []
    if nodeset.expand(wish.node) != [wish.node]:
        raise UsageError(f"{wish.node[:80]!r} is no name for a node", "it stands for several", "rename the node")
    if not known and len(state.nodes) >= NODES_MAX:
        raise Refused(f"the cluster has {NODES_MAX} nodes already", "it can't have more", "start another cluster")
    texts = [wish.incarnation, wish.boot, wish.address, wish.key, *wish.facts, *wish.facts.values()]
    if (
        not (0 <= wish.slots <= SLOTS_MAX and 0 <= wish.mem_bytes <= MEM_MAX_BYTES)
        or len(wish.facts) > FACTS_MAX
        or not wish.incarnation
        or any(len(text) > TEXT_LENGTH_MAX for text in texts)
        or len(wish.running) > RUNNING_MAX
    ):
        raise UsageError(f"{wish.node} says impossible things of itself", "over the limits", "update its beo")
    return [
        ev.NodeJoined(
            wish.node,
            wish.incarnation,
            wish.boot,
            wish.address,
            wish.key,
            wish.slots,
            wish.mem_bytes,
            wish.facts,
            wish.running,
            now_s,
        )
    ]


def _differs(node: Node, wish: ms.Join) -> bool:
    said = (wish.boot, wish.address, wish.key, wish.slots, wish.mem_bytes, wish.facts)
    return said != (node.boot, node.address, node.key, node.slots, node.mem_bytes, node.facts)


def failure(error: BeoError) -> ms.Failed:
    """An error as an answer."""
    return ms.Failed(error.to_dict())

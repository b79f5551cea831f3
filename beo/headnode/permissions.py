"""Who may say what: one table for every message that the head reads, on both planes. Pure.

A message that isn't in the table is refused, and a test fails until it has its line: nobody can add a kind of message
and forget to say whose it is. What the deciders look at in addition (whose uid a submission names, say) stands there.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from beo import messages as ms
from beo import votes
from beo.errors import BeoError, Internal, NotFound, Refused
from beo.headnode.decide import User, find, pick
from beo.headnode.model import Job
from beo.headnode.state import State

WORKER = "worker"  # a worker's key, for its node
VOTER = "voter"  # a worker's key, or a witness's
HEAD = "head"  # a head's own key
TOKEN = "token"  # a token's own key: the only thing that it may say
ALL = "all"  # everybody, workers about their own node
ADMIN = "admin"  # admins alone
OWNER = "owner"  # the owner of each job that it names, by `job`, `jobs` or `select`, and admins
SEEN = "seen"  # everybody but workers; of others' jobs the answer holds no more than views.py lets strangers see
PEER = "peer"  # the other head alone, which has this one's key: the cluster's own
PAIR = "pair"  # everybody but workers, and witnesses: where the heads are
SELF = "self"  # everybody but workers, for himself

RULES: dict[type, str] = {
    ms.Info: SEEN,
    ms.AskTree: ALL,
    ms.Submit: SELF,
    ms.ListJobs: SEEN,
    ms.ShowJob: SEEN,
    ms.WaitJobs: SEEN,
    ms.Cancel: OWNER,
    ms.Hold: OWNER,
    ms.Release: OWNER,
    ms.Requeue: OWNER,
    ms.SetPriority: OWNER,
    ms.Migrate: OWNER,
    ms.AskRanks: OWNER,
    ms.ListProcesses: OWNER,
    ms.SignalProcesses: OWNER,
    ms.Signal: OWNER,
    ms.ListNodes: ALL,
    ms.ListEvents: SEEN,
    ms.ListHistory: SEEN,
    ms.DeclareGone: ADMIN,
    ms.Drain: ADMIN,
    ms.Resume: ADMIN,
    ms.ForgetNodes: ADMIN,
    ms.MakeToken: ADMIN,
    ms.ListTokens: ADMIN,
    ms.RevokeTokens: ADMIN,
    ms.Enrol: TOKEN,
    ms.ListUsers: ADMIN,
    ms.RevokeKeys: ADMIN,
    ms.AllowUser: ADMIN,
    ms.AskPair: PAIR,
    ms.Steer: ADMIN,
    ms.SetPair: ADMIN,
    ms.JoinHead: HEAD,
    ms.LeaveHead: ADMIN,
    ms.Reserve: ADMIN,
    ms.ListReservations: SEEN,
    ms.CancelReservations: ADMIN,
    ms.AskPlace: WORKER,
    ms.LeaseMachine: ADMIN,
    ms.OpenMachine: ADMIN,
    ms.JoinMachine: ADMIN,
    ms.ListMachines: ADMIN,
    ms.ApproveMachine: ADMIN,
    ms.SetMachine: ADMIN,
    ms.ForgetMachine: ADMIN,
    ms.AskConsole: ADMIN,
    votes.Present: VOTER,
    votes.Promise: VOTER,
    votes.Accepted: VOTER,
    votes.Granted: VOTER,
    votes.Refuse: VOTER,
    ms.Join: WORKER,
    ms.Ping: WORKER,
    ms.Ended: WORKER,
    ms.Gone: WORKER,
    ms.Delivered: WORKER,
    ms.Health: WORKER,
    ms.VaultsAre: WORKER,
    ms.VaultCopied: WORKER,
    ms.Processes: WORKER,
    ms.Hits: WORKER,
    ms.Vouch: WORKER,
    ms.Chunk: WORKER,
    ms.StdinAck: WORKER,
    ms.BulkHello: WORKER,
    ms.Fetch: OWNER,
    ms.Stdin: OWNER,
    ms.Copy: PEER,
    ms.Offer: PEER,
    ms.Exported: PEER,
}


def check_role(user: User | None, message: object) -> tuple[User, str]:
    """Return who says it and the rule for it, or raise Refused where this user may say none of its kind."""
    rule = RULES.get(type(message))
    if user is None:
        raise Refused("this key is not authorized", "", "ask the cluster's operator")
    if rule is None:
        kind = type(message).__name__
        raise Internal(f"nobody may say {kind}", "it has no line in the table of permissions", "update this beo")
    if user.role == "token" and rule != TOKEN:
        raise Refused("a token is no key", "it gets its holder one", "use 'beo worker' or 'beo login' with it")
    if rule == TOKEN and user.role != "token":
        raise Refused("this key is one already", f"it is {user.name}'s", "join with a token of 'beo token'")
    if rule == WORKER and user.role != "worker":
        raise Refused("only a worker's key can speak for a node", f"this key is {user.name}'s", "use the worker's key")
    if rule == VOTER and user.role not in ("worker", "witness"):
        raise Refused("only a voter's key can vote", f"this key is {user.name}'s", "use a worker's or a witness's")
    if rule == HEAD and user.role != "head":
        raise Refused("only a head's own key can ask for this", f"this key is {user.name}'s", "use 'beo head join'")
    if rule == PEER and user.role != "peer":
        raise Refused("only the other head can give copies", f"this key is {user.name}'s", "use the cluster's own key")
    known = ("admin", "user", "witness") if rule == PAIR else ("admin", "user")
    if rule not in (WORKER, VOTER, HEAD, PEER, TOKEN, ALL) and user.role not in known:
        raise Refused(f"a {user.role}'s key can't ask for this", "", "use a user's key")
    if rule == ADMIN and user.role != "admin":
        raise Refused("only an admin can do that", f"you are {user.name}", "ask the cluster's operator")
    return user, rule


def check(state: State, user: User | None, message: Any) -> User:
    """Return who says it; raise Refused where he may not, NotFound where it names a job that isn't there."""
    user, rule = check_role(user, message)
    if rule == OWNER:
        check_owner(user, _named(state, user, message))
    if rule == WORKER and not speaks_for(state, user, message.node):
        raise foreign_node(message.node)
    return user


def speaks_for(state: State, user: User, node: str) -> bool:
    """Whether a worker's key may speak for a node: its own, or, where it has none, those that have no key either."""
    return user.node == node if user.node else node not in state.node_keys


def sees_node(state: State, user: User, node: str) -> bool:
    """Whether a user may see a node: a worker its own alone, and who is neither user nor worker none."""
    return user.role in ("admin", "user") or (user.role == "worker" and speaks_for(state, user, node))


def foreign_node(node: str) -> BeoError:
    """The refusal for what is said in the name of another's node."""
    return Refused(f"this key can't speak for {node[:80]}", "another's can", "join under another name")


def _named(state: State, user: User, message: Any) -> list[Job]:
    if hasattr(message, "select"):
        return pick(state, user, message.select) if message.select else []
    numbers = [number for number, _ in message.jobs] if hasattr(message, "jobs") else [message.job]
    return [find(state, number) for number in numbers]


def check_owner(user: User, jobs: Iterable[Job]) -> None:
    """Raise Refused at the first job that isn't this user's own; admins have all."""
    for job in jobs:
        if not user.may(job):
            raise stranger(job.id, job.user, user.name)


def stranger(job: int, owner: str, name: str) -> BeoError:
    """The refusal for a job of somebody else."""
    return Refused(f"job {job} belongs to {owner}", f"you are {name or 'nobody'}", f"ask {owner}, or an admin")


def check_bulk(user: User | None, owner: str | None, message: Any) -> User:
    """The same for the bulk plane, which sees no state: owner is that of the job which the message names."""
    user, rule = check_role(user, message)
    if rule == OWNER:
        if owner is None:
            why = "it never was, or was forgotten long after its end"
            raise NotFound(f"no job {message.job}", why, "see 'beo queue'")
        if user.role != "admin" and user.name != owner:
            raise stranger(message.job, owner, user.name)
    return user

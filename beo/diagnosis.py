"""All that `beo doctor` knows: this machine by looking at it, the cluster by asking its head."""

from __future__ import annotations

from beo import client, config, doctor, local
from beo.doctor import CLUSTER, HERE, Case
from beo.errors import BeoError
from beo.messages import Finding


def all_cases(home: config.Home) -> list[Case]:
    """Everything that is wrong, this machine first."""
    here = [*doctor.machine(home, *doctor.probed()), *doctor.programs()]
    there = _cluster(home) if home.cluster_file.exists() else []
    if not there and not home.cluster_file.exists():
        here = [finding for finding in here if finding.check != "network"]
        there = [Case(CLUSTER, Finding("cluster", f"there is none in {home.path}", "'beo up', or 'beo worker'"))]
    own = set(here)  # an agent of this machine has found the same
    mine = set(_own_nodes(home))
    return [Case(HERE, f) for f in here] + [c for c in there if c.where not in mine or c.finding not in own]


def _boots(home: config.Home, cluster: client.Cluster) -> list[Case]:
    """What hinders machines from booting from here, where they are to."""
    if not home.who_file.exists():
        return []
    from beo.boot import fitness

    machines = cluster.machines()
    wanted = fitness.is_wanted(home, machines)
    return [Case(HERE, finding) for finding in fitness.findings(home, machines)] if wanted else []


def _own_nodes(home: config.Home) -> list[str]:
    plan = local.read_plan(home)
    return plan.nodes if plan else []


def _cluster(home: config.Home) -> list[Case]:
    try:
        if (home.keys / "admin.secret").exists():
            with client.Cluster(home) as cluster:
                return [*doctor.cluster(cluster.info().version, cluster.nodes()), *_boots(home, cluster)]
        return doctor.cluster("", local.nodes(home))  # a worker's key shows its own node
    except BeoError as error:
        why = f"{error.what} ({error.why})" if error.why else error.what
        return [Case(CLUSTER, Finding("head", why, error.cure or "see the logs on the head's machine"))]

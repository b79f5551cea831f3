"""Taking files along: from the submitter's folder into the tree, before the job is submitted."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

import msgspec

from beo.bulk.snapshot import Snapshot
from beo.bulk.store import Store, told
from beo.client import Cluster
from beo.errors import Conflict
from beo.spec import JobSpec
from beo.tree import words as w
from beo.tree.files import Files
from beo.tree.locate import session

FRESH_S = (
    600.0  # what was kept longer ago is touched again before the job is submitted: far less than chunks are spared
)


def take_along(cluster: Cluster, job: JobSpec, inputs: Sequence[str]) -> JobSpec:
    """Return a spec with these files along, named relative to its folder, as they are now.

    When this returns, they are on the disks of all heads that are in step. Raises BeoError that names what can't be
    taken, or why there is no place for it.
    """
    if not inputs:
        return job
    snapshot = Snapshot(inputs, job.cwd)
    caller = w.Caller(os.geteuid(), os.getegid(), tuple(os.getgroups()))
    with Files(session(cluster.home, cluster.secret()), caller) as files:
        store = Store(files, os.getuid())
        try:
            store.prepare()
            began_s = time.monotonic()
            store.keep(snapshot.cuts())
            if time.monotonic() - began_s > FRESH_S and store.keep_again():
                raise Conflict("the inputs changed in the tree while they were sent", "", "submit again")
        except OSError as error:
            raise told(error) from None
    return msgspec.structs.replace(job, bundle=snapshot.bundle)

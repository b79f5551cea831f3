"""Copies of checkpoints in the tree, for the people whose they are: brought out into a folder, as they are."""

from __future__ import annotations

import os
from pathlib import Path

from beo.bulk.chunks import Damaged
from beo.bulk.store import Missing, Store, manifest
from beo.bulk.unpacking import Unpacking
from beo.client import Cluster
from beo.errors import BeoError, Conflict, NotFound
from beo.messages import JobDetail
from beo.tree import words as w
from beo.tree.files import Files
from beo.tree.locate import session


def bring(cluster: Cluster, job: JobDetail, folder: Path) -> list[Path]:
    """Write each node's copy, of those that belong together, into a folder of its name. Returns these folders.

    Raises NotFound where there is no copy, Conflict where a folder isn't empty, BeoError where a copy is damaged.
    """
    number = job.view.id
    chosen = [(node, bundle) for node, _, bundle, _, _ in job.copies]
    if not chosen:
        why = "its nodes alone keep its checkpoint, or it has none"
        raise NotFound(f"no copy of job {number}'s checkpoint is at the head", why, "see 'beo ckpt list'")
    caller = w.Caller(os.geteuid(), os.getegid(), tuple(os.getgroups()))
    made = []
    with Files(session(cluster.home, cluster.secret()), caller) as files:
        store = Store(files, job.uid)
        for node, bundle in sorted(chosen):
            place = folder / node
            try:
                place.mkdir(parents=True, exist_ok=True)
                if any(place.iterdir()):
                    raise Conflict(f"{place} isn't empty", "", "name another folder")
                found = manifest(store.fetch, bundle)
                unpacking = Unpacking(found, str(place))
                for name, data in store.fetch(unpacking.missing):
                    unpacking.take(name, data)
                unpacking.finish()
            except Missing as error:
                raise NotFound(
                    f"job {number}'s copy of {node} is gone", str(error), "the job is over for long"
                ) from None
            except Damaged as error:
                raise BeoError(f"job {number}'s copy of {node} is damaged", str(error), "see 'beo ha verify'") from None
            except OSError as error:
                why = (error.strerror or str(error)).lower()
                raise Conflict(f"{error.filename or place} can't be written", why, "name another folder") from None
            made.append(place)
    return made

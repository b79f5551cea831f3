"""Makes a snapshot of a head's journal: ``python -m beo.headnode.compactor FOLDER UPTO``, see beo/compactor.py."""

from __future__ import annotations

import sys

from beo.compactor import main
from beo.headnode.replay import replay

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], replay))

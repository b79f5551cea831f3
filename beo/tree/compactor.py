"""Makes a snapshot of the tree's journal: ``python -m beo.tree.compactor FOLDER UPTO``, see beo/compactor.py."""

from __future__ import annotations

import sys

from beo.compactor import main
from beo.tree.replay import replay

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], replay))

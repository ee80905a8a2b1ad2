"""``python -m ualm.export RUN -o BUNDLE``: the same as ``ualm export``."""

import sys

from ..runtime.cli import main

if __name__ == "__main__":
    sys.argv[1:1] = ["export"]
    main()

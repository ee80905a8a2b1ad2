"""``python -m ualm.export RUN -o BUNDLE``: the same as ``ualm export``."""

from ..runtime.cli.command import main

if __name__ == "__main__":
    import sys

    sys.argv[1:1] = ["export"]
    main()

"""``python -m ualm.runtime.cli``: the same as ``ualm``."""

if __name__ == "__main__":
    from .command import main

    main()

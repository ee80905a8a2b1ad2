"""``python -m ualm.bench.random_run``, see ``run``."""

if __name__ == "__main__":
    from ualm.runtime.cli import command

    command.run("ualm.bench.random_run.run")

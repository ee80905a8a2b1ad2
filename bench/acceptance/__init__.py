"""Answers in one run the questions that only a GPU can answer: ``ualm bench acceptance``.

It is made for a bare machine that is rented for a quarter of an hour. Each stage runs in a process of its own, needs
numpy, ualm's compiled modules and the driver, and names what else it misses; ``stages`` has them all in order.
"""

"""The verbs of `ualm`, one module each."""

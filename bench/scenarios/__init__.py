"""The scenarios: one module per verb of `ualm bench`."""

"""What is measured: one module a verb of `ualm bench`."""

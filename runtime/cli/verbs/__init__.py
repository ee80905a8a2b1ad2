"""One module a verb of `ualm`."""

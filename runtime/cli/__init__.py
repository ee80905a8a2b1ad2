"""The command `ualm`."""

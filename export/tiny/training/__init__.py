"""How ualm-tiny is trained."""

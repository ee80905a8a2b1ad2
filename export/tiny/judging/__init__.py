"""How ualm-tiny is judged, and the results."""

"""How ualm-tiny is judged, and what that gave."""

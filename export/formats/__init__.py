"""How weights are stored: formats, rounding, and the files that hold them."""

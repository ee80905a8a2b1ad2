"""What weights are stored in: formats, rounding, and the files that hold them."""

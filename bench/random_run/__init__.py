"""Training runs of any shape with random weights."""

"""What this machine can do, and whether a bundle computes correctly on it."""

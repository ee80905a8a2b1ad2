"""What this machine can do, and whether a bundle computes right on it."""

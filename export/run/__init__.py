"""A training run: its files, its settings and its checkpoint."""

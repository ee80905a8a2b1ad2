"""What `ualm export --engine` makes of a training run."""

"""What all engines on a GPU share: memory, cache, the frame loop and its sampler."""

"""What every engine on a GPU shares: memory, cache, the frame loop and its sampler."""

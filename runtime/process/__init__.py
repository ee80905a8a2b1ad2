"""The process that we run in: signals, streams, processor cores, what is installed."""

"""A stand-in for TensorRT, and what its real bindings say."""

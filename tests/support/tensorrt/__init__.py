"""A stand-in for TensorRT, and facts from its real bindings."""

"""A bundle's parts as engines of TensorRT and TensorRT-RTX."""

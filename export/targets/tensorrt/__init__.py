"""Compiles a bundle's parts into engines for TensorRT and TensorRT-RTX."""

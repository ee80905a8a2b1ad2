"""The engines on ONNX Runtime: CPU and CUDA."""

"""Answers in one run the questions that only a GPU can answer: ``ualm bench acceptance``.

Stages, each of which can be run separately: the machine's facts; how fast its memory copies and a graph launches;
whether the kernels compute the CPU's bits; whether a TensorRT-RTX engine loads; the whole loop on ONNX Runtime's CUDA
provider; and the true shapes with random weights against the published algorithm in torch on the same card.
"""

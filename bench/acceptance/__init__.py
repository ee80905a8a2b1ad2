"""What only a GPU can answer, answered in one go the day there is one: ``ualm bench acceptance``.

Stages, each a run of its own if need be: what the machine is; how fast its memory copies and a graph launches; whether
the kernels compute the CPU's bits; whether a TensorRT-RTX engine loads; the whole loop on ONNX Runtime's CUDA provider;
and the true shapes with random weights against the published algorithm in torch on the same card.
"""

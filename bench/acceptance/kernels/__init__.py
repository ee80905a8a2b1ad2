"""Whether the kernels compute the CPU's bits: of the sampler, what the CPU drew is in a file made beforehand."""

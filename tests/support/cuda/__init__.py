"""The kernels on the host shim."""

"""Compiled kernels of the forward pass on the CPU."""

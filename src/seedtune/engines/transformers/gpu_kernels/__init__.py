"""Triton kernels of a decoder layer's decode step, between its matrix products.  They have not run on a GPU yet."""

"""Compiled kernels: noise, perturbation, update and fingerprint, bit for bit as the numpy references."""

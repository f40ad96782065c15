"""Noise, rounding, fingerprints, tensor files, and the weights built from them."""

"""Noise, rounding, fingerprints, tensors on disk, and the weights they make up."""

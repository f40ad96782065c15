"""Fused parts of a decoder layer, each proved equal to the original before it replaces it."""

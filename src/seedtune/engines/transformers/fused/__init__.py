"""Fused parts of a decoder layer, each proved equal before it takes the place of the original."""

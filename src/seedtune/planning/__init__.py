"""Advice before training: which sigma and alpha, how much memory, how much time."""

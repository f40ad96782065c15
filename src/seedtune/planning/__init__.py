"""Advice before training: sigma and alpha, memory, and time."""

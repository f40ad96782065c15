"""Callbacks: the events of a run, what a callback may ask of the trainer, and early stopping."""

"""Reward functions called in worker processes or threads, with time-outs."""

"""Evaluation on held-out examples, with intervals, and the report of a run."""

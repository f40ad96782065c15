"""Evaluation on held-out examples, with confidence intervals, and the report of a run."""

"""Perturbed members of the population inside a model: low-rank or gaussian."""

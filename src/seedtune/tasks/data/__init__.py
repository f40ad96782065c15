"""Rows of training data: from files, hubs or generators, split and cut to length."""

"""Rows of training data: from files, the Hugging Face Hub or generators, split and truncated."""

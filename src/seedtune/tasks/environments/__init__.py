"""Environments: the counterpart of a model in conversations of several turns."""

"""Rewards score completions; higher is better."""

"""``seedtune chat``: the base and the tuned model of a run answer side by side."""

"""``seedtune doctor``: what this machine has, which engines work, and the command that installs a missing package."""

"""The computing resources of this machine: cores, instructions, vectors, and folders for compiled code."""

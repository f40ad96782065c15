"""What this machine has for computing: cores, instructions, vectors, and folders for what is compiled."""

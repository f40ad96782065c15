"""What is made of a finished run: exports, packs, checks and comparisons."""

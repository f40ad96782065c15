"""What a GPU does with seedtune's code: right bits, right answers, and how far from the machine's limits."""

"""``seedtune report`` writes the report of runs, ``seedtune watch`` serves that of a run in progress."""

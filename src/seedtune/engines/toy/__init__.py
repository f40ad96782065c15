"""The toy engine: a run takes a second."""

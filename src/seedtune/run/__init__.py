"""A run on the disk: its ledger, its weights brought back from it, its metrics."""

"""A run on disk: its ledger, replay of its weights from the ledger, and its metrics."""

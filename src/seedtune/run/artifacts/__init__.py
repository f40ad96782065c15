"""Tools for finished runs: exports, packs, verification and comparison."""

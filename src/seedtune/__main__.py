"""``python -m seedtune``."""

from seedtune.cli import main

main()

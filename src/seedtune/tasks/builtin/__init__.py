"""The built-in tasks, each with its reward."""

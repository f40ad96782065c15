"""Built-in mathematics tasks and the comparison of their answers."""

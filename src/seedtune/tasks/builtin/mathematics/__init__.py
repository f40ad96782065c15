"""Built-in tasks on mathematics, and what compares their answers."""

"""Where reward functions come from: Python files, other libraries, judges, classifiers."""

"""The settings of a run: fields, rules for their combinations, and reading YAML files."""

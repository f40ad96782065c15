"""Every setting of a run: fields, the rules that hold between them, and the YAML file they come from."""

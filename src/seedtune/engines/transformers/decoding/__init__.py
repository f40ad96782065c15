"""From prompts to completions and log-probabilities: attention and caches of packed rows."""

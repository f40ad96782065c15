"""From prompts to scored completions of every member."""

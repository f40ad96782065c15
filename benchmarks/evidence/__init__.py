"""Evidence: the claims made for evolution strategies, measured beside GRPO at a size that runs on two cores."""

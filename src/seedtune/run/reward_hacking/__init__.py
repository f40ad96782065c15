"""Signs that a model games its reward: changes of its answers, and the samples that show them."""

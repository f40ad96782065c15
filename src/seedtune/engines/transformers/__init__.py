"""The in-process engine on Hugging Face transformers: the whole population in one batch."""

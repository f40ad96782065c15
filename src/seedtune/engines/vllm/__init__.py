"""The engine on vLLM: continuous batching, tensor parallelism, members as weights or as LoRA adapters."""

"""Names of GRPOConfig that evolution strategies do not have, with what to write instead."""

from __future__ import annotations

from collections.abc import Iterable

from seedtune.errors import ConfigError

_NO_GRADIENT = "there is no gradient. Leave it out"

COUNTERPARTS = {
    "num_generations": "population is the number of completions of a prompt, one by each perturbed model",
    "num_generations_eval": "held-out prompts have one completion each. Leave it out",
    **dict.fromkeys(
        (*("per_device_train_batch_size", "gradient_accumulation_steps"), "generation_batch_size"),
        "a step evaluates prompts_per_generation prompts times population members",
    ),
    "steps_per_generation": "every generation makes one update. Leave it out",
    "num_iterations": "every generation makes one update. Leave it out",
    "per_device_eval_batch_size": "eval_prompts is the number of held-out prompts; they are batched by themselves",
    "max_steps": "generations is the number of updates",
    "num_train_epochs": "give generations: an epoch is the number of rows divided by prompts_per_generation",
    "beta": "anchor_l2 pulls to the base model; kl_steps measures the divergence",
    **dict.fromkeys(
        ("sync_ref_model", "ref_model_mixup_alpha", "ref_model_sync_steps"), "the anchor is always the base model"
    ),
    **dict.fromkeys(
        ("epsilon", "epsilon_high", "delta", "max_grad_norm"),
        "steps are at most as long as a perturbation; alpha sets them",
    ),
    **dict.fromkeys(("loss_type", "importance_sampling_level", "entropy_coef", "top_entropy_quantile"), _NO_GRADIENT),
    **dict.fromkeys(("optim", "gradient_checkpointing", "disable_dropout", "deepspeed", "fsdp"), _NO_GRADIENT),
    "mask_truncated_completions": "return None from a reward to leave a completion out",
    "scale_rewards": "shaping is how rewards become utilities",
    **dict.fromkeys(("lr_scheduler_type", "warmup_steps", "warmup_ratio"), "alpha_schedule has kind, over and warmup"),
    "weight_decay": "anchor_l2 pulls to the base model",
    **dict.fromkeys(("bf16", "fp16"), "dtype is bfloat16, float16 or float32; auto is the checkpoint's own"),
    "model_init_kwargs": "dtype, trust_remote_code and model=ID@REVISION are settings",
    "use_vllm": "engine is vllm or transformers",
    "vllm_mode": "vLLM runs in this process, or in Ray workers with engine=ray",
    "vllm_gpu_memory_utilization": "it is vllm.gpu_memory_utilization, {'vllm': {'gpu_memory_utilization': 0.8}}",
    "vllm_tensor_parallel_size": "it is vllm.tensor_parallel_size, {'vllm': {'tensor_parallel_size': 2}}",
    "vllm_max_model_length": "it is vllm.max_model_len, {'vllm': {'max_model_len': 4096}}",
    **dict.fromkeys(("top_k", "min_p", "repetition_penalty"), "samples are drawn with temperature and top_p"),
    "generation_kwargs": "temperature, top_p, stop and max_completion_length are settings",
    **dict.fromkeys(("eval_strategy", "do_eval"), "eval_steps=N evaluates every N generations, 0 at both ends"),
    "save_strategy": "save_steps=N saves every N generations",
    "logging_strategy": "logging_steps=N shows every N generations",
    **dict.fromkeys(
        ("load_best_model_at_end", "metric_for_best_model", "greater_is_better"),
        "every generation can be had from the ledger: save_model(generation='best:METRIC')",
    ),
    "shuffle_dataset": "every epoch has an order of its own, by seed. Leave it out",
    "remove_unused_columns": "rewards get every column. Leave it out",
    "data_seed": "seed draws everything",
    **dict.fromkeys(
        ("push_to_hub", "hub_model_id", "hub_private_repo", "hub_strategy"),
        "a run is pushed when you ask: trainer.push_to_hub('user/name', private=True), or seedtune push",
    ),
    "max_tool_calling_iterations": "it is conversation.max_turns, {'conversation': {'max_turns': 5}}",
}
"""Setting of GRPOConfig → what evolution strategies have in its place.  ``learning_rate`` is a setting here, too.

`docs/coming-from-grpo.md` lists them."""


def check_not_of_grpo(names: Iterable[object]) -> None:
    """Raise ConfigError for the first name that is a setting of GRPOConfig only."""
    found = next((name for name in names if name in COUNTERPARTS), None)
    if found is not None:
        raise ConfigError(f"{found} is a setting of GRPO, not of evolution strategies: {COUNTERPARTS[str(found)]}.")

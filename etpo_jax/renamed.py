"""Settings of earlier versions, and what stands in their place; CHANGELOG.md has the same table."""

_NOW = {
    "tie_policy": "--policy_loss=tied",
    "policy_target": "--policy_loss=eq7 for exp_q",
    "path_starts": "--critic_loss=path_root for root",
    "gae_lambda": "--lambda_within",
    "updates_per_batch": "--gradient_steps_per_update",
    "adam_eps": "--optimizer=adamw:eps=...",
    "weight_decay": "--optimizer=adamw:weight_decay=...",
    "clip_norm": "--optimizer=adamw:clip_norm=...",
    "lora": "--finetune=lora",
    "lora_rank": "--finetune=lora:rank=...",
    "lora_alpha": "--finetune=lora:alpha=...",
    "lora_targets": "--finetune=lora:targets=q+v",
    "trained_dtype": "--finetune=full:dtype=...",
    "huber_delta": "--critic_loss=one_step:huber=...",
    "accept_changed_data": "--nostrict_data",
    "loss_chunk_size": "--remat=full:logits=...",
    "num_workers": "--executor=local:workers=... or --executor=ray:...,workers=...",
    "ray_address": "--executor=ray:address=...",
    "num_ray_actors": "--executor=ray:actors=...",
    **{
        name: f"--limits={name}=..."
        for name in ("timeout_s", "cpu_s", "memory_mb", "max_threads", "max_output_kb")
    },
    "prompt_style": "--prompt_format=infill:...",
    "endpoint_model": "--model",
    **{
        f"endpoint_{name}": "--endpoint_options (a JSON object with client and budget)"
        for name in (
            *("budget", "completion_price", "concurrency", "key_variable", "prompt_price"),
            *("retries", "timeout_s"),
        )
    },
    **dict.fromkeys(
        ("coordinator_address", "num_processes", "process_id"),
        "--hosts=auto or --hosts=HOST:PORT,COUNT,INDEX",
    ),
    "compilation_cache_dir": "the environment variable JAX_COMPILATION_CACHE_DIR",
}
_DELETED = {
    "learn_while_executing": "it follows from --replay_size",
    "targets": "all tokens of an action are learnt from",
    "forbidden_constructs": "the wall around programs stops what it named",
    "inspect_actions": "the report shows the newest actions",
    "checkpoints_to_keep": "the two newest checkpoints are kept",
    "length_multiple": "lengths are padded by a fixed multiple",
    "policy_warmup_steps": "no algorithm used it",
}

RENAMED = {name: f"it is now {now}" for name, now in _NOW.items()} | {
    name: f"there is none any more: {reason}" for name, reason in _DELETED.items()
}
"""What to say of each old name."""

"""Lengths that must fit into each other. verl asserts some of them only in the first update, after hours."""

from __future__ import annotations

from typing import Any

from verl_act.preflight.model import ModelShape
from verl_act.preflight.problem import Problem


def length_problems(config: Any, model: ModelShape | None) -> list[Problem]:
    """Token budgets of micro-batches and the engine's context, against the longest sample."""
    if "actor_rollout_ref" not in config:
        return _budget_problems(_sft_budgets(config), config.data.max_length, "data.max_length")
    longest = config.data.max_prompt_length + config.data.max_response_length
    names = "data.max_prompt_length + data.max_response_length"
    return _budget_problems(_budgets(config), longest, names) + _context_problems(config, longest, names, model)


def _budget_problems(budgets: dict[str, int], longest: int, names: str) -> list[Problem]:
    return [
        Problem(
            f"{key} is {budget} (with sequence parallelism), below {names} = {longest}: verl stops at the first sample "
            "that is longer.",
            f"Set {key} to at least {longest}, or lower the lengths.",
        )
        for key, budget in budgets.items()
        if budget < longest
    ]


def _budgets(config: Any) -> dict[str, int]:
    """Key -> tokens of a micro-batch, for the models that pack by tokens."""
    role = config.actor_rollout_ref
    candidates = [
        ("actor_rollout_ref.actor.ppo_max_token_len_per_gpu", role.actor.use_dynamic_bsz, role.actor),
        ("actor_rollout_ref.rollout.log_prob_max_token_len_per_gpu", role.rollout.log_prob_use_dynamic_bsz, role.actor),
    ]
    if role.actor.use_kl_loss or config.algorithm.use_kl_in_reward:
        key = "actor_rollout_ref.ref.log_prob_max_token_len_per_gpu"
        candidates.append((key, role.ref.log_prob_use_dynamic_bsz, role.ref))
    budgets = {key: _at(config, key) * sequence_parallel(owner) for key, used, owner in candidates if used}
    if config.algorithm.adv_estimator == "gae" and config.critic.use_dynamic_bsz:
        # The only budget of the value model that verl's trainer reads; its configuration files lack the key.
        name = "ppo_infer_max_token_len_per_gpu"
        budgets[f"+critic.{name}"] = (config.critic.get(name) or 32768) * sequence_parallel(config.critic)
    return budgets


def _sft_budgets(config: Any) -> dict[str, int]:
    if not config.data.use_dynamic_bsz:
        return {}
    parallel = config.engine.get("ulysses_sequence_parallel_size") or 1
    return {"data.max_token_len_per_gpu": config.data.max_token_len_per_gpu * parallel}


def _context_problems(config: Any, longest: int, names: str, model: ModelShape | None) -> list[Problem]:
    """verl's engine refuses a prompt that fills its context, and cuts a reply that would exceed it."""
    key = "actor_rollout_ref.rollout.max_model_len"
    context, limit = _at(config, key), model.max_positions if model else None
    problems = []
    if context is not None and context < longest:
        problems.append(
            Problem(
                f"{key} is {context}, below {names} = {longest}: long replies would be cut, and long prompts refused.",
                f"Set {key} to at least {longest} (null: the model's own limit), or lower the lengths.",
            )
        )
    if limit is not None and max(context or 0, longest) > limit:
        problems.append(
            Problem(
                f"samples may have {max(context or 0, longest)} tokens ({key}, {names}), and the model's context has "
                f"{limit} (max_position_embeddings): verl refuses the first, and cuts samples of the others.",
                "Lower the lengths, or choose a model with a longer context.",
                fatal=(context or 0) > limit,
            )
        )
    return problems


def sequence_parallel(owner: Any) -> int:
    """Devices that share a sequence; the key in the engine's block counts, or else the deprecated one beside it."""
    engine = owner.get("fsdp_config") or owner.get("fsdp") or {}
    return max(engine.get("ulysses_sequence_parallel_size") or 1, owner.get("ulysses_sequence_parallel_size") or 1)


def _at(config: Any, key: str) -> Any:
    for name in key.split("."):
        config = config[name]
    return config

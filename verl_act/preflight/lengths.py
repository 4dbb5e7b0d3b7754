"""Lengths that must fit into each other. verl asserts some of them only in the first update, after hours."""

from __future__ import annotations

from typing import Any

from omegaconf import OmegaConf

from verl_act.preflight.model import ModelShape
from verl_act.preflight.problem import Problem


def length_problems(config: Any, model: ModelShape | None) -> list[Problem]:
    """Token budgets of micro-batches and the engine's context, against the longest sample. DPO truncates samples."""
    if "actor_rollout_ref" in config:
        names = "data.max_prompt_length + data.max_response_length"
        return _budget_problems(_budgets(config), config, names) + _context_problems(config, names, model)
    return _budget_problems(_sft_budgets(config), config, "data.max_length") if "engine" in config else []


def longest_sample(config: Any) -> int:
    """Most tokens of a prompt and its reply."""
    data = config.data
    longest: int = (
        data.max_prompt_length + data.max_response_length if "actor_rollout_ref" in config else data.max_length
    )
    return longest


def _budget_problems(budgets: dict[str, tuple[int, int]], config: Any, names: str) -> list[Problem]:
    longest = longest_sample(config)
    return [
        Problem(
            f"{key} is {budget}{f' on each of {devices} devices' if devices > 1 else ''}, below {names} = {longest}: "
            "verl stops at the first sample that is longer.",
            f"Set `{key}={-(-longest // devices)}` or more, or lower the lengths.",
        )
        for key, (budget, devices) in budgets.items()
        if budget * devices < longest
    ]


def _budgets(config: Any) -> dict[str, tuple[int, int]]:
    """Key -> tokens of a micro-batch, and the devices that share a sequence; for the models that pack by tokens."""
    role = config.actor_rollout_ref
    candidates = [
        ("actor_rollout_ref.actor.ppo_max_token_len_per_gpu", role.actor.use_dynamic_bsz, role.actor),
        ("actor_rollout_ref.rollout.log_prob_max_token_len_per_gpu", role.rollout.log_prob_use_dynamic_bsz, role.actor),
    ]
    if role.actor.use_kl_loss or config.algorithm.use_kl_in_reward:
        key = "actor_rollout_ref.ref.log_prob_max_token_len_per_gpu"
        candidates.append((key, role.ref.log_prob_use_dynamic_bsz, role.ref))
    budgets = {
        key: (OmegaConf.select(config, key), sequence_parallel(owner)) for key, used, owner in candidates if used
    }
    if config.algorithm.adv_estimator == "gae" and config.critic.use_dynamic_bsz:
        # The only budget of the value model that verl's trainer reads; its configuration files lack the key.
        name = "ppo_infer_max_token_len_per_gpu"
        budgets[f"++critic.{name}"] = (config.critic.get(name) or 32768, sequence_parallel(config.critic))
    return budgets


def _sft_budgets(config: Any) -> dict[str, tuple[int, int]]:
    if not config.data.use_dynamic_bsz:
        return {}
    devices = config.engine.get("ulysses_sequence_parallel_size") or 1
    return {"data.max_token_len_per_gpu": (config.data.max_token_len_per_gpu, devices)}


def _context_problems(config: Any, names: str, model: ModelShape | None) -> list[Problem]:
    """verl's engine refuses a prompt that fills its context, and cuts a reply that would exceed it."""
    key = "actor_rollout_ref.rollout.max_model_len"
    context, limit, longest = (
        OmegaConf.select(config, key),
        model.max_positions if model else None,
        longest_sample(config),
    )
    problems = []
    if context is not None and context < longest:
        problems.append(
            Problem(
                f"{key} is {context}, below {names} = {longest}: long replies would be cut, and long prompts refused.",
                f"Set `{key}={longest}` or more, or lower the lengths.",
            )
        )
    if limit is not None and max(context or 0, longest) > limit:
        problems.append(
            Problem(
                f"samples may have {max(context or 0, longest)} tokens ({key}, {names}), and the model's context has "
                f"{limit} (max_position_embeddings): verl refuses the first, and cuts samples of the others.",
                f"Set `{key}={limit}`, or choose a model with a longer context."
                if (context or 0) > limit
                else "Lower `data.max_prompt_length`, or choose a model with a longer context.",
                fatal=(context or 0) > limit,
            )
        )
    return problems


def sequence_parallel(owner: Any) -> int:
    """Devices that share a sequence; the key in the engine's block counts, or else the deprecated one beside it."""
    engine = owner.get("fsdp_config") or owner.get("fsdp") or {}
    return max(engine.get("ulysses_sequence_parallel_size") or 1, owner.get("ulysses_sequence_parallel_size") or 1)

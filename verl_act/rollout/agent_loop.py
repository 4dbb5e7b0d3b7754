"""`act_env`, verl's agent loop for live episodes: tokens in, tokens out, around `episode.play`.

Seam: `verl.experimental.agent_loop`. verl creates one instance per rollout and passes the dataset's columns to `run`.
Prompts are encoded once and replies keep their sampled tokens, so training uses exactly what was generated.
"""

from __future__ import annotations

import asyncio
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from time import perf_counter
from typing import Any
from uuid import uuid4

from verl.experimental.agent_loop.agent_loop import AgentLoopBase, AgentLoopMetrics, AgentLoopOutput, register
from verl.workers.rollout.replica import TokenOutput

from verl_act.config.settings import ActSettings, EpisodeSettings
from verl_act.envs.base import Task
from verl_act.envs.pool import EnvPool
from verl_act.errors import ConfigError
from verl_act.prompts import Message, Template
from verl_act.prompts.plain_text import as_plain_text
from verl_act.prompts.reply_decoder import ReplyDecoder
from verl_act.rollout.episode import Episode, play
from verl_act.rollout.sequence import GrowingSequence, Sample
from verl_act.schema import Context
from verl_act.settings.episodes import Mode
from verl_act.upstream_gaps.failed_rollouts import FAILURES

_WITHOUT_EXTRA_FIELDS = ("dapo", "gdpo")
"""verl's reward managers that do not pass the agent loop's extra fields to the reward function."""


@register("act_env")
class ActEnvAgentLoop(AgentLoopBase):
    """Plays the row's task and returns one output per episode (`concat`) or per turn (`stepwise`).

    A broken environment raises `EnvError`. verl trains on the other episodes of the row's group; if none finished, it
    drops the group, or samples another with `trainer.v1.sampler.sync_refill_failed_groups`. `failed_rollouts.py` stops
    a run in which only that happens.
    """

    async def run(  # type: ignore[override]  # verl accepts a list too
        self, sampling_params: dict[str, Any], **row: Any
    ) -> AgentLoopOutput | list[AgentLoopOutput]:
        task = Task(**row["extra_info"]["task"])
        with FAILURES.watch(str(row.get("uid", task))):
            return await self._play(task, sampling_params)

    async def _play(self, task: Task, sampling_params: dict[str, Any]) -> AgentLoopOutput | list[AgentLoopOutput]:
        settings = ActSettings.from_config(self.data_config)
        if (manager := self.config.reward.reward_manager.name) in _WITHOUT_EXTRA_FIELDS:
            raise ConfigError(
                f"verl's reward manager {manager!r} does not pass on the outcome of an episode. Set "
                "reward.reward_manager.name=naive to train or validate on tasks."
            )
        self._require_room_for_turns(settings.episode)
        pool = EnvPool.shared(task.env, settings.episode.env_settings, settings.episode)
        policy_class = ConcatPolicy if settings.episode.mode is Mode.CONCAT else StepwisePolicy
        policy = policy_class(
            self, settings.make_template(), settings.episode, sampling_params, settings.thought_markers
        )
        session = await pool.open(task)
        try:
            episode = await play(task, session, policy, settings.episode.max_turns)
        finally:
            await session.close()
        outputs = policy.outputs(episode, env_memory_mb=session.memory_mb)
        return outputs[0] if len(outputs) == 1 else outputs  # see upstream_gaps/one_output.py

    def _require_room_for_turns(self, settings: EpisodeSettings) -> None:
        """Raise `ConfigError` if one reply may use up the tokens of a whole episode."""
        room, reply = self.rollout_config.response_length, settings.max_tokens_per_turn
        if settings.mode is Mode.CONCAT and settings.max_turns > 1 and reply is not None and reply >= room:
            raise ConfigError(
                f"data.max_response_length={room} has to hold a whole episode in mode concat, and one reply of "
                f"data.act.episode.max_tokens_per_turn={reply} tokens would take all of it. Raise "
                "data.max_response_length to the length of an episode."
            )


class _TokenPolicy(ABC):
    """Requests replies from verl's server and keeps every token for training.

    Tokenizing is done in threads, to keep the event loop of all episodes free.
    """

    def __init__(
        self,
        agent_loop: AgentLoopBase,
        template: Template,
        settings: EpisodeSettings,
        sampling_params: dict[str, Any],
        thought_markers: Sequence[str] | None = None,
    ) -> None:
        self.agent_loop = agent_loop
        self.template = template
        self.settings = settings
        self.sampling_params = sampling_params
        self.samples: list[Sample] = []
        options = agent_loop.data_config.get("apply_chat_template_kwargs")
        self.decoder = ReplyDecoder(agent_loop.tokenizer, options, thought_markers)
        self.seconds = 0.0
        self.preempted = -1  # verl's value for "unknown"
        self.routed_experts: list[Any] = []
        """One array per sample, of shape [prompt + response - 1, layers, experts per token]; None if unknown."""
        self.server_fields: list[dict[str, Any]] = []
        # One id per episode keeps it on one server, whose prefix cache then has its earlier turns.
        self.request_id = uuid4().hex

    async def reply(self, context: Context) -> str | None:
        """The reply, preceded by the part that the prompt already wrote; None if there is no room for one."""
        text = await self.generated_text(context)
        return None if text is None else self.decoder.prefix + text

    @abstractmethod
    async def generated_text(self, context: Context) -> str | None:
        """The text that the model generates; None if there is no room for a reply."""

    def turn_limit(self, room: int) -> int:
        """The maximum tokens of one reply if `room` tokens are left."""
        limit = self.settings.max_tokens_per_turn
        return room if limit is None else min(limit, room)

    def fits(self, prompt_ids: list[int], context: Context) -> bool:
        """Whether a prompt is within the limit. Raises `ConfigError` if an episode's first prompt is not."""
        limit: int = self.agent_loop.rollout_config.prompt_length
        if len(prompt_ids) > limit and not context.history:
            raise ConfigError(
                f"The first prompt of an episode takes {len(prompt_ids)} tokens, more than data.max_prompt_length="
                f"{limit} (goal: {context.goal!r}). Raise data.max_prompt_length, or choose a shorter template than "
                f"{type(self.template).__name__} with data.act.template."
            )
        return len(prompt_ids) <= limit

    async def generate(self, prompt_ids: list[int], max_tokens: int) -> TokenOutput:
        """Sampled token ids, their log-probabilities and their routed experts (None if the server returns none)."""
        started = perf_counter()
        output: TokenOutput = await self.agent_loop.server_manager.generate(
            request_id=self.request_id,
            prompt_ids=prompt_ids,
            sampling_params={**self.sampling_params, "max_tokens": max_tokens},
        )
        self.seconds += perf_counter() - started
        self.server_fields.append(dict(output.extra_fields))
        if output.num_preempted is not None:
            self.preempted = max(self.preempted, 0) + output.num_preempted
        return output

    def outputs(self, episode: Episode, **metrics: float) -> list[AgentLoopOutput]:
        """The samples that verl trains on. `metrics` are logged with those of the episode.

        Every output has the same extra fields, as TransferQueue requires.
        """
        fields = {
            **self._weight_versions(),
            "episode": {**episode.metrics(), **metrics},
            "episode_reward": self._reward(episode),
            "turn_scores": [],
            "tool_rewards": [],
        }
        loop_metrics = AgentLoopMetrics(
            generate_sequences=self.seconds, tool_calls=episode.env_seconds, num_preempted=self.preempted
        )
        return [
            AgentLoopOutput(
                prompt_ids=sample.prompt_ids,
                response_ids=sample.response_ids,
                response_mask=sample.response_mask,
                response_logprobs=sample.response_logprobs or None,
                routed_experts=routed_experts,
                num_turns=2 * len(episode.turns),
                metrics=loop_metrics,
                multi_modal_data={},
                extra_fields=dict(fields),
            )
            for sample, routed_experts in zip(self.samples, self.routed_experts, strict=True)
        ]

    def _reward(self, episode: Episode) -> float:
        settings = self.settings
        inadmissible = sum(turn.action is not None and not turn.admissible for turn in episode.turns)
        malformed = sum(turn.malformed is not None for turn in episode.turns)
        return (
            settings.success_reward * episode.success
            + settings.score_reward * episode.score
            + settings.inadmissible_penalty * inadmissible
            + settings.malformed_penalty * malformed
        )

    def _weight_versions(self) -> dict[str, Any]:
        """The oldest and newest weight versions of the episode, for verl's off-policy control."""
        oldest, newest = (
            [fields[name] for fields in self.server_fields if fields.get(name) is not None]
            for name in ("min_global_steps", "max_global_steps")
        )
        return {"min_global_steps": min(oldest, default=None), "max_global_steps": max(newest, default=None)}


class StepwisePolicy(_TokenPolicy):
    """Each turn is a sample: a new prompt with the last turns of the history, and the reply."""

    async def generated_text(self, context: Context) -> str | None:
        prompt_ids = await asyncio.to_thread(self._prompt, self.template.action_messages(context))
        if not self.fits(prompt_ids, context):
            return None
        reply = await self.generate(prompt_ids, self.turn_limit(self.agent_loop.rollout_config.response_length))
        self.samples.append(Sample(prompt_ids))
        self.samples[-1].take(reply.token_ids, reply.log_probs)
        self.routed_experts.append(reply.routed_experts)
        return await asyncio.to_thread(self.decoder.text, reply.token_ids)

    def _prompt(self, messages: list[Message]) -> list[int]:
        """All token ids of a prompt: verl's own method would truncate the left, where the goal is."""
        messages = as_plain_text(messages, self.agent_loop.tokenizer)
        ids: list[int] = self.agent_loop.continuous_token_builder.build_initial_tokens(messages)
        return ids


class ConcatPolicy(_TokenPolicy):
    """The episode is one sample: a `GrowingSequence`."""

    sequence: GrowingSequence | None = None

    async def generated_text(self, context: Context) -> str | None:
        if self.sequence is None:
            self.sequence = await self._begin(context)
        else:
            content = self.template.followup(context.observation, context.admissible_actions)
            if not await asyncio.to_thread(self.sequence.observe, content, self._limit(self.sequence.sample)):
                return None
        sample = self.sequence.sample
        reply = await self.generate(sample.token_ids, self.turn_limit(self._limit(sample) - len(sample.response_ids)))
        text = await asyncio.to_thread(self.decoder.text, reply.token_ids)
        self.sequence.reply(reply.token_ids, text, reply.log_probs)
        # The server returns them for all tokens so far.
        self.routed_experts = [reply.routed_experts]
        return text

    async def _begin(self, context: Context) -> GrowingSequence:
        loop = self.agent_loop
        messages = self.template.action_messages(context)
        sequence = await asyncio.to_thread(GrowingSequence, messages, loop.tokenizer, loop.continuous_token_builder)
        self.fits(sequence.sample.prompt_ids, context)
        self.samples.append(sequence.sample)
        return sequence

    def _limit(self, sample: Sample) -> int:
        """Tokens that may follow the first prompt: limited by the response length and the server's context."""
        rollout = self.agent_loop.rollout_config
        context = rollout.max_model_len or math.inf
        return int(min(rollout.response_length, context - len(sample.prompt_ids)))

"""`act_env`, built and called as verl does it: what is trained is, token for token, what the server sampled.

The environment pool, the tokenizer and verl's token builders are the real ones. Only the LLM server is a script: it
answers with given texts, as token ids that no tokenizer would choose, so that any retokenisation shows.
"""

from __future__ import annotations

import asyncio
import copy
import inspect
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import hostile_env
import hydra
import numpy as np
import pytest
from installed_env import ray_with
from omegaconf import OmegaConf
from samples import embedded_models
from verl.experimental.agent_loop import agent_loop as verl_agent_loop
from verl.experimental.agent_loop.agent_loop import AgentLoopOutput, DictConfigWrap, ToolListWrap
from verl.experimental.reward_loop.reward_manager.registry import get_reward_manager_cls
from verl.trainer.ppo.v1.trainer_base import PPOTrainer
from verl.utils.tensordict_utils import list_of_dict_to_tensordict
from verl.workers.rollout.replica import TokenOutput

from verl_act.data.dataset import ActDataset
from verl_act.data_prep.embedded.make_embedded_model import train_tokenizer
from verl_act.engine import Engine
from verl_act.envs.alfworld.environment import AlfworldEnvironment
from verl_act.envs.base import Task
from verl_act.envs.pool import EnvPool
from verl_act.envs.registry import get_env
from verl_act.errors import ConfigError, EnvError
from verl_act.evaluate.rollouts import PolicyUnderTest, rollout_tasks
from verl_act.prompts import get_template
from verl_act.prompts.plain_text import as_plain_text, control_tokens
from verl_act.reward_fns.route import compute_score
from verl_act.rollout import agent_loop
from verl_act.rollout.episode import NO_ACTION
from verl_act.schema import TASK, Context, Turn, write_rows
from verl_act.settings.episodes import Mode
from verl_act.settings.model import ModelSettings, Sampling
from verl_act.upstream_gaps import failed_rollouts as failures

pytestmark = pytest.mark.slow

TEMPLATE = get_template("compact")
MODES = ["stepwise", "concat"]


@pytest.fixture(scope="module", autouse=True)
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A Ray job in which the hostile environment is an installed package."""
    with ray_with(hostile_env, tmp_path_factory.mktemp("site")):
        yield


@dataclass
class Played:
    """A task of the generated games, its shortest solution, and the contexts that the solution passes through."""

    task: Task
    plan: list[str]
    contexts: list[Context]


@pytest.fixture(scope="module")
def played(games: Path) -> Played:
    environment = AlfworldEnvironment(data=games)
    task = get_env("alfworld").tasks("train", data=str(games))[0]
    first = environment.reset(task)
    plan = environment.plan()
    assert plan
    contexts = [Context(first.goal, (), first.observation, first.admissible_actions)]
    for action in plan:
        last = contexts[-1]
        result = environment.step(action)
        history = (*last.history, Turn(last.observation, action))
        contexts.append(Context(first.goal, history, result.observation, result.admissible_actions))
    return Played(task, plan, contexts[:-1])


@pytest.fixture(scope="module")
def tokenizer(played: Played) -> Any:
    """ChatML over a byte-level BPE, as the embedded model has it."""
    rows = [
        (TEMPLATE.action_messages(context), answer(action))
        for context, action in zip(played.contexts, played.plan, strict=True)
    ]
    return train_tokenizer(rows, vocabulary=600, dialect=get_env("alfworld").dialect)


def answer(action: str) -> str:
    return f"<action>{action}</action>"


@dataclass
class Request:
    request_id: str
    prompt_ids: list[int]
    sampling_params: dict[str, Any]
    reply: TokenOutput


class ScriptedServer:
    """verl's `LLMServerClient`, as far as an agent loop sees it. (Hydra would make a configuration of a dataclass.)"""

    def __init__(self, tokenizer: Any, script: Sequence[str], log_probs: bool) -> None:
        self.tokenizer = tokenizer
        self.script = script
        self.log_probs = log_probs
        self.requests: list[Request] = []

    async def generate(
        self, request_id: str, *, prompt_ids: list[int], sampling_params: dict[str, Any], **_: Any
    ) -> TokenOutput:
        number = len(self.requests)
        ids = [*self._letter_by_letter(self.script[number]), self.tokenizer.eos_token_id]
        ids = ids[: sampling_params["max_tokens"]]
        log_probs = [-(number + position / 1000) for position in range(1, len(ids) + 1)]
        versions = {"min_global_steps": 3 + number, "max_global_steps": 4 + number}
        # As vLLM tells them: of every token that went through the model, the last one sampled not among them.
        experts = np.arange(len(prompt_ids) + len(ids) - 1, dtype=np.int16).reshape(-1, 1, 1)
        reply = TokenOutput(
            token_ids=ids,
            log_probs=log_probs if self.log_probs else None,
            routed_experts=experts if self.log_probs else None,
            num_preempted=number % 2,
            extra_fields=versions,
        )
        self.requests.append(Request(request_id, list(prompt_ids), dict(sampling_params), reply))
        return reply

    def _letter_by_letter(self, text: str) -> list[int]:
        ids = [number for letter in text for number in self.tokenizer.encode(letter, add_special_tokens=False)]
        assert self.tokenizer.decode(ids) == text
        assert ids != self.tokenizer.encode(text, add_special_tokens=False)
        return ids


@dataclass
class Run:
    outputs: list[AgentLoopOutput]
    requests: list[Request]


def run_loop(
    task: Task,
    tokenizer: Any,
    script: Sequence[str],
    folder: Path,
    *,
    log_probs: bool = True,
    prompt_length: int = 4096,
    response_length: int = 4096,
    history_length: int | None = None,
    uid: str = "group",
    model_type: str = "qwen3",
    max_model_len: int | None = None,
    reward_manager: str = "naive",
    **episode: Any,
) -> Run:
    """Play `task` through the agent loop as verl's worker starts it, on a row as verl's dataset gives it."""
    rows = folder / "tasks.parquet"
    write_rows(rows, [asdict(task)], TASK)
    act = {"template": "compact", "history_length": history_length, "episode": {"max_turns": 40, **episode}}
    lengths = {"prompt_length": prompt_length, "response_length": response_length, "max_model_len": max_model_len}
    config = OmegaConf.create(
        {
            "actor_rollout_ref": {"rollout": lengths},
            "reward": {"reward_manager": {"name": reward_manager}},
            "data": {"max_prompt_length": prompt_length, "act": act},
        }
    )
    row = ActDataset([str(rows)], tokenizer, config.data)[0]
    server = ScriptedServer(tokenizer, script, log_probs)
    sampling = {"temperature": 1.0, "top_p": 1.0, "top_k": -1, "repetition_penalty": 1.0, "logprobs": log_probs}

    async def run() -> AgentLoopOutput | list[AgentLoopOutput]:
        loop = hydra.utils.instantiate(
            config=verl_agent_loop._agent_loop_registry[row["agent_name"]],
            trainer_config=DictConfigWrap(config=config),
            server_manager=server,
            tokenizer=tokenizer,
            processor=None,
            hf_model_type=model_type,
            dataset_cls=ActDataset,
            data_config=DictConfigWrap(config.data),
            tools=ToolListWrap([]),
        )
        columns = {name: value for name, value in row.items() if name != "agent_name"}
        return await loop.run(sampling, uid=uid, session_id=0, global_steps=1, **columns)

    result = asyncio.run(run())
    outputs = result if isinstance(result, list) else [result]
    assert all(request.sampling_params.items() >= sampling.items() for request in server.requests)
    return Run(outputs, server.requests)


def trained(output: AgentLoopOutput) -> list[list[tuple[int, float]]]:
    """The runs of trained tokens: (id, log-probability)."""
    runs: list[list[tuple[int, float]]] = []
    before = 0
    assert output.response_logprobs is not None
    for number, mask, log_prob in zip(output.response_ids, output.response_mask, output.response_logprobs, strict=True):
        if mask:
            if not before:
                runs.append([])
            runs[-1].append((number, log_prob))
        else:
            assert log_prob == 0.0
        before = mask
    return runs


def sampled(requests: Sequence[Request]) -> list[list[tuple[int, float]]]:
    return [list(zip(request.reply.token_ids, request.reply.log_probs or [], strict=True)) for request in requests]


def conversation(contexts: Sequence[Context], replies: Sequence[str]) -> list[dict[str, str]]:
    """What a concat episode is meant to say, as messages."""
    messages = TEMPLATE.action_messages(contexts[0])
    for reply, context in zip(replies, [*contexts[1:], None], strict=False):
        messages.append({"role": "assistant", "content": reply})
        if context is not None and len(messages) < 2 * len(replies):
            content = TEMPLATE.followup(context.observation, context.admissible_actions)
            messages.append({"role": "user", "content": content})
    return messages


def test_stepwise_trains_each_reply_at_its_own_prompt(
    played: Played, tokenizer: Any, games: Path, tmp_path: Path
) -> None:
    script = [answer(action) for action in played.plan]
    run = run_loop(played.task, tokenizer, script, tmp_path, mode="stepwise", env_settings={"data": str(games)})
    assert len(run.outputs) == len(run.requests) == len(played.plan)
    for output, request, context in zip(run.outputs, run.requests, played.contexts, strict=True):
        assert output.prompt_ids == request.prompt_ids
        assert output.response_ids == request.reply.token_ids
        assert output.response_mask == [1] * len(request.reply.token_ids)
        assert output.response_logprobs == request.reply.log_probs
        messages = TEMPLATE.action_messages(context)
        assert output.prompt_ids == tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=False
        )


class ScriptedVllm:
    """vLLM, as far as `Engine` sees it: replies as the `ScriptedServer` does."""

    def __init__(self, tokenizer: Any, script: Sequence[str], model_type: str) -> None:
        self.server = ScriptedServer(tokenizer, script, log_probs=False)
        self.model_config = SimpleNamespace(hf_config=SimpleNamespace(model_type=model_type))

    async def generate(self, prompt: dict[str, list[int]], parameters: Any, request: str) -> AsyncIterator[Any]:
        ids = prompt["prompt_token_ids"]
        limits = {"max_tokens": parameters.max_tokens}
        reply = await self.server.generate(request, prompt_ids=ids, sampling_params=limits)
        text = self.server.tokenizer.decode(reply.token_ids, skip_special_tokens=True)
        yield SimpleNamespace(outputs=[SimpleNamespace(token_ids=reply.token_ids, text=text)])


def evaluated(
    task: Task,
    tokenizer: Any,
    script: Sequence[str],
    games: Path,
    mode: str,
    model_type: str,
    max_model_len: int = 4096,
) -> tuple[dict[str, Any], list[Request]]:
    """The record of the task in an evaluation, and what was asked for it."""
    engine, vllm = Engine.__new__(Engine), ScriptedVllm(tokenizer, script, model_type)
    engine.settings = ModelSettings(model=str(embedded_models()["alfworld"]))
    engine.tokenizer, engine.llm = tokenizer, cast(Any, vllm)
    engine.chat_template_kwargs, engine.reply_prefix = {}, ""
    engine.without_room, engine.max_model_len = 0, max_model_len
    policy = PolicyUnderTest(engine, TEMPLATE, Sampling(max_tokens=max_model_len), mode=Mode(mode))
    pool = EnvPool("alfworld", {"data": str(games)})
    (record,) = asyncio.run(rollout_tasks(policy, [task], pool, max_turns=40))
    return record, vllm.server.requests


@pytest.mark.parametrize("model_type", ["qwen3", "llama"])
@pytest.mark.parametrize("mode", MODES)
def test_an_evaluation_asks_what_training_asks(
    mode: str, model_type: str, played: Played, tokenizer: Any, games: Path, tmp_path: Path
) -> None:
    """Token for token, also after a reply without an answer."""
    script = ["no tags at all", *map(answer, played.plan)]
    run = run_loop(
        *(played.task, tokenizer, script, tmp_path),
        model_type=model_type,
        mode=mode,
        env_settings={"data": str(games)},
    )
    record, asked = evaluated(played.task, tokenizer, script, games, mode, model_type)
    assert [request.prompt_ids for request in asked] == [request.prompt_ids for request in run.requests]
    assert record["end"] == "goal" and [turn["reply"] for turn in record["turns"]] == script


def test_an_evaluation_of_one_sequence_ends_with_the_context(played: Played, tokenizer: Any, games: Path) -> None:
    script = [answer(action) for action in played.plan]
    ask = partial(evaluated, played.task, tokenizer, script, games, "concat", "qwen3")
    _, asked = ask()
    whole = len(asked[2].prompt_ids)
    for context, turns in ((whole + 2, 3), (whole + 1, 3), (whole, 2), (whole - 1, 2)):
        record, asked = ask(max_model_len=context)
        assert (record["end"], len(record["turns"])) == ("token_budget", turns)
        assert len(asked) == turns and all(
            len(request.prompt_ids) + request.sampling_params["max_tokens"] <= context for request in asked
        )
    record, asked = ask(max_model_len=10)
    assert (record["end"], record["turns"], asked) == ("token_budget", [], [])


@pytest.mark.parametrize("model_type", ["qwen3", "llama"])
def test_concat_grows_one_sequence_and_never_encodes_a_reply_again(
    model_type: str, played: Played, tokenizer: Any, games: Path, tmp_path: Path
) -> None:
    """ChatML models come as a type that verl has a token builder for, or as any other: SmolLM2 is a `llama`."""
    script = [answer(action) for action in played.plan]
    run = run_loop(
        *(played.task, tokenizer, script, tmp_path),
        model_type=model_type,
        mode="concat",
        env_settings={"data": str(games)},
    )
    (output,) = run.outputs
    sequence = output.prompt_ids + output.response_ids
    for request in run.requests:
        asked, told = request.prompt_ids, request.reply.token_ids
        assert sequence[: len(asked) + len(told)] == asked + told
    assert output.prompt_ids == run.requests[0].prompt_ids
    assert trained(output) == sampled(run.requests)
    assert output.response_mask[-1] == 1, "nothing follows the last reply"
    text = tokenizer.apply_chat_template(conversation(played.contexts, script), tokenize=False)
    assert tokenizer.decode(sequence) == text.removesuffix("\n")


@pytest.mark.parametrize("mode", MODES)
def test_what_the_server_says_of_experts_and_preemptions_is_passed_on(
    mode: str, played: Played, tokenizer: Any, games: Path, tmp_path: Path
) -> None:
    """Training of mixtures of experts may replay the server's routing of each token."""
    script = [answer(action) for action in played.plan]
    run = run_loop(played.task, tokenizer, script, tmp_path, mode=mode, env_settings={"data": str(games)})
    last = run.requests if mode == "stepwise" else run.requests[-1:]
    for output, request in zip(run.outputs, last, strict=True):
        assert output.routed_experts is request.reply.routed_experts
        assert len(output.routed_experts) == len(output.prompt_ids) + len(output.response_ids) - 1
        assert output.metrics.num_preempted == len(run.requests) // 2


@pytest.mark.parametrize("mode", MODES)
def test_outputs_carry_the_outcome_and_stack(
    mode: str, played: Played, tokenizer: Any, games: Path, tmp_path: Path
) -> None:
    run = run_loop(
        played.task,
        tokenizer,
        [answer(action) for action in played.plan],
        tmp_path,
        mode=mode,
        success_reward=1.5,
        score_reward=0.5,
        env_settings={"data": str(games)},
    )
    turns = len(played.plan)
    assert len({tuple(sorted(output.extra_fields)) for output in run.outputs}) == 1
    for output in run.outputs:
        fields = output.extra_fields
        assert fields["episode_reward"] == 2.0
        assert fields["episode"]["success"] == 1.0
        assert fields["episode"]["steps"] == turns
        assert (fields["min_global_steps"], fields["max_global_steps"]) == (3, 3 + turns)
        assert output.num_turns == 2 * turns
        assert output.metrics.generate_sequences > 0 and output.metrics.tool_calls > 0
        assert output.reward_score is None, "verl's reward loop sets it"
        score = compute_score("act/alfworld/episode", "", played.task.task_id, {**fields})
        assert (score["score"], score["acc"], score["success"], score["steps"]) == (2.0, 1.0, 1.0, turns)
    rows = [output.as_dict() for output in run.outputs]
    assert len({tuple(sorted(row)) for row in rows}) == 1
    assert len(list_of_dict_to_tensordict(rows)) == len(rows)
    assert len({request.request_id for request in run.requests}) == 1, "one server keeps the episode's prefix"


@pytest.mark.parametrize("mode", MODES)
def test_poor_replies_are_counted_and_cost(
    mode: str, played: Played, tokenizer: Any, games: Path, tmp_path: Path
) -> None:
    script = ["no tags at all", answer("fly"), answer("fly"), *map(answer, played.plan)]
    run = run_loop(
        played.task,
        tokenizer,
        script,
        tmp_path,
        mode=mode,
        inadmissible_penalty=-0.25,
        malformed_penalty=-0.125,
        env_settings={"data": str(games)},
    )
    fields = run.outputs[-1].extra_fields
    turns = len(script)
    assert fields["episode_reward"] == 1.0 - 2 * 0.25 - 0.125
    assert fields["episode"]["steps"] == turns
    assert fields["episode"]["malformed_share"] == pytest.approx(1 / turns)
    assert fields["episode"]["inadmissible_share"] == pytest.approx(2 / turns)
    assert fields["episode"]["longest_failed_repeat"] == 2
    assert [run_ for output in run.outputs for run_ in trained(output)] == sampled(run.requests)
    if mode == "stepwise":
        assert NO_ACTION in tokenizer.decode(run.requests[1].prompt_ids)


@pytest.mark.parametrize("mode", MODES)
def test_without_log_probabilities(mode: str, played: Played, tokenizer: Any, games: Path, tmp_path: Path) -> None:
    script = [answer(action) for action in played.plan]
    run = run_loop(
        played.task, tokenizer, script, tmp_path, log_probs=False, mode=mode, env_settings={"data": str(games)}
    )
    for output in run.outputs:
        assert output.response_logprobs is None
        assert len(output.response_mask) == len(output.response_ids)
    assert sum(sum(output.response_mask) for output in run.outputs) == sum(
        len(request.reply.token_ids) for request in run.requests
    )


def test_a_concat_episode_ends_within_its_budget(played: Played, tokenizer: Any, games: Path, tmp_path: Path) -> None:
    """Budgets around the places where each next reply would begin."""
    script = [answer(action) for action in played.plan]

    def run_within(room: int) -> Run:
        settings = {"data": str(games)}
        return run_loop(
            played.task, tokenizer, script, tmp_path, response_length=room, mode="concat", env_settings=settings
        )

    whole = run_within(4096)
    begins = [len(request.prompt_ids) - len(whole.outputs[0].prompt_ids) for request in whole.requests]
    expected = {start + more: turn + (more > 0) for turn, start in enumerate(begins) if turn for more in (-1, 0, 1)}
    for room, turns in expected.items():
        run = run_within(room)
        (output,) = run.outputs
        assert len(output.response_ids) <= room
        assert len(run.requests) == turns
        assert output.extra_fields["episode"]["steps"] == turns
        assert output.extra_fields["episode"]["success"] == 0.0
        assert output.extra_fields["episode_reward"] == 0.0
        assert output.response_mask[-1] == 1, "an observation that cannot be answered is left out"
        assert trained(output) == sampled(run.requests)
        for request in run.requests:
            left = room - (len(request.prompt_ids) - len(output.prompt_ids))
            assert 1 <= request.sampling_params["max_tokens"] <= left


def test_room_for_one_reply_is_none_for_an_episode(played: Played, tokenizer: Any, games: Path, tmp_path: Path) -> None:
    script = [answer(action) for action in played.plan]
    play = partial(run_loop, played.task, tokenizer, script, tmp_path, env_settings={"data": str(games)})
    with pytest.raises(ConfigError, match="max_response_length=24"):
        play(mode="concat", response_length=24, max_tokens_per_turn=24)
    assert play(mode="concat", response_length=24, max_tokens_per_turn=23).requests
    assert play(mode="concat", response_length=24, max_tokens_per_turn=24, max_turns=1).requests
    assert play(mode="stepwise", response_length=24, max_tokens_per_turn=24, max_turns=2).requests


def test_a_concat_episode_ends_within_the_context_of_the_server(
    played: Played, tokenizer: Any, games: Path, tmp_path: Path
) -> None:
    script = [answer(action) for action in played.plan]
    settings: dict[str, Any] = {"mode": "concat", "env_settings": {"data": str(games)}}
    whole = run_loop(played.task, tokenizer, script, tmp_path, **settings)
    context = len(whole.requests[1].prompt_ids) + 1
    run = run_loop(played.task, tokenizer, script, tmp_path, max_model_len=context, **settings)
    (output,) = run.outputs
    assert len(output.prompt_ids) + len(output.response_ids) <= context and len(run.requests) == 2
    assert run.requests[1].sampling_params["max_tokens"] == 1


@pytest.mark.parametrize("manager", ["dapo", "gdpo"])
def test_a_reward_manager_that_would_not_hear_of_the_outcome_is_refused(
    manager: str, played: Played, tokenizer: Any, games: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=f"'{manager}'"):
        run_loop(played.task, tokenizer, [], tmp_path, reward_manager=manager, env_settings={"data": str(games)})
    source = inspect.getsource(get_reward_manager_cls(manager))
    assert "tool_extra_fields" not in source, "verl passes it on by now: take it off the list"


@pytest.mark.parametrize("mode", MODES)
def test_a_reply_is_cut_at_its_own_limit(
    mode: str, played: Played, tokenizer: Any, games: Path, tmp_path: Path
) -> None:
    script = ["a reply that is far too long " * 20] * 2
    run = run_loop(
        *(played.task, tokenizer, script, tmp_path),
        mode=mode,
        max_tokens_per_turn=16,
        max_turns=2,
        env_settings={"data": str(games)},
    )
    assert [request.sampling_params["max_tokens"] for request in run.requests] == [16, 16]
    assert run.outputs[-1].extra_fields["episode"]["malformed_share"] == 1.0
    assert [run_ for output in run.outputs for run_ in trained(output)] == sampled(run.requests)
    assert run.outputs[-1].num_turns == 4
    if mode == "concat":
        cut = tokenizer.decode(run.requests[0].reply.token_ids)
        assert f"{cut}<|im_end|>\n<|im_start|>user\n" in tokenizer.decode(run.requests[1].prompt_ids)


@pytest.mark.parametrize("mode", MODES)
def test_a_thought_that_the_prompt_opens_and_nothing_ends_holds_no_action(
    mode: str, played: Played, tokenizer: Any, games: Path, tmp_path: Path
) -> None:
    thinking = copy.deepcopy(tokenizer)
    thinking.chat_template = tokenizer.chat_template.replace(
        "<|im_start|>assistant\n{% endif %}", "<|im_start|>assistant\n<think>\n{% endif %}"
    )
    assert thinking.chat_template != tokenizer.chat_template
    first = answer(played.plan[0])
    run = run_loop(
        *(played.task, thinking, [first, f"so</think>{first}"], tmp_path),
        mode=mode,
        max_turns=2,
        env_settings={"data": str(games)},
    )
    assert run.outputs[-1].extra_fields["episode"]["malformed_share"] == 0.5
    assert [run_ for output in run.outputs for run_ in trained(output)] == sampled(run.requests)


@pytest.mark.parametrize("mode", MODES)
def test_an_overlong_first_prompt_is_refused(
    mode: str, played: Played, tokenizer: Any, games: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"data\.max_prompt_length=50 .*goal: "):
        run_loop(played.task, tokenizer, [], tmp_path, prompt_length=50, mode=mode, env_settings={"data": str(games)})


def test_an_overlong_later_prompt_ends_the_episode(played: Played, tokenizer: Any, games: Path, tmp_path: Path) -> None:
    script = [answer(action) for action in played.plan]

    def run_within(limit: int) -> Run:
        settings = {"data": str(games)}
        return run_loop(
            played.task, tokenizer, script, tmp_path, prompt_length=limit, mode="stepwise", env_settings=settings
        )

    lengths = [len(request.prompt_ids) for request in run_within(4096).requests]
    assert lengths[1] > lengths[0]
    run = run_within(lengths[0])
    assert [len(request.prompt_ids) for request in run.requests] == lengths[:1], "it is asked whole or not at all"
    assert run.outputs[0].extra_fields["episode"]["token_budget"] == 1.0
    assert run.outputs[0].extra_fields["episode"]["steps"] == 1.0


def test_a_run_in_which_every_episode_fails_is_ended(
    tokenizer: Any, games: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_loop, "FAILURES", failures.Failures(failures.JOB_BOARD))
    submitted: list[int] = []
    trainer = SimpleNamespace(_next_train_batch=lambda count: count, _submit_batch_to_rollout=submitted.append)
    nowhere = Task("alfworld", "train", "nowhere", "x")
    for number in range(failures.GROUPS):
        PPOTrainer._add_prompts_to_generate(trainer, 1)
        with pytest.raises(EnvError, match="nowhere"):
            run_loop(nowhere, tokenizer, [], tmp_path, uid=f"group {number}", env_settings={"data": str(games)})
    with pytest.raises(EnvError, match=r"\b16 .*EnvError: .*nowhere"):
        PPOTrainer._add_prompts_to_generate(trainer, 1)
    assert submitted == [1] * failures.GROUPS


def test_stepwise_prompts_show_a_window_of_the_history(
    played: Played, tokenizer: Any, games: Path, tmp_path: Path
) -> None:
    script = [answer(action) for action in played.plan]
    run = run_loop(
        *(played.task, tokenizer, script, tmp_path),
        history_length=1,
        mode="stepwise",
        env_settings={"data": str(games)},
    )
    window = get_template("compact", history_length=1)
    for request, context in zip(run.requests, played.contexts, strict=True):
        text = tokenizer.apply_chat_template(
            window.action_messages(context), add_generation_prompt=True, tokenize=False
        )
        assert tokenizer.decode(request.prompt_ids) == text


@pytest.mark.parametrize("mode", MODES)
def test_text_of_an_environment_never_becomes_a_control_token(mode: str, tokenizer: Any, tmp_path: Path) -> None:
    script = [answer("go on")] * hostile_env.STEPS
    run = run_loop(Task(hostile_env.NAME, "train", "note", "note"), tokenizer, script, tmp_path, mode=mode)
    assert len(run.requests) == hostile_env.STEPS
    control = {tokenizer.convert_tokens_to_ids(name) for name in control_tokens(tokenizer)}
    assert len(control) == 3
    harmless = as_plain_text([{"role": "user", "content": hostile_env.INJECTION}], tokenizer)[0]["content"]
    for number, request in enumerate(run.requests):
        # ChatML: two for each finished message, and one that opens the reply.
        messages = 1 + (2 * number if mode == "concat" else 0)
        assert sum(token in control for token in request.prompt_ids) == 2 * messages + 1
        assert harmless in tokenizer.decode(request.prompt_ids)
    assert run.outputs[-1].extra_fields["episode"]["success"] == 1.0


def test_a_task_that_cannot_be_loaded_fails_the_rollout(tokenizer: Any, games: Path, tmp_path: Path) -> None:
    with pytest.raises(EnvError, match="nowhere"):
        run_loop(
            *(Task("alfworld", "train", "nowhere", "x"), tokenizer, [], tmp_path),
            mode="stepwise",
            env_settings={"data": str(games)},
        )

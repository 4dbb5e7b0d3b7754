"""A model behind an OpenAI-compatible server: the real client against servers that fail, and against vLLM's own."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from openai_server import completion, refusal, server
from samples import embedded_models, make_pair, make_step

from verl_act.engine import Reply
from verl_act.errors import ConfigError, EngineError, OptionError
from verl_act.evaluate.endpoint import Endpoint
from verl_act.evaluate.evaluation import check_settings, evaluate_model
from verl_act.evaluate.suites import incomparable
from verl_act.schema import PAIR, TRAJECTORY, write_rows
from verl_act.settings.evaluation import EvaluationSettings
from verl_act.settings.model import ModelSettings, Sampling

MODEL = str(embedded_models()["alfworld"])
MESSAGES = [{"role": "user", "content": "act :"}]


def replies(url: str, **sampling: Any) -> list[str]:
    with Endpoint(url, ModelSettings(model="a-model")) as endpoint:
        return endpoint.run(endpoint.reply(MESSAGES, Sampling(**sampling), seed=3))


def test_a_request_says_model_sampling_and_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    with server(lambda request: (200, completion("<action>look</action>"))) as (url, requests):
        assert replies(url, temperature=0.5, top_p=0.9, top_k=20, max_tokens=7) == ["<action>look</action>"]
    (request,) = requests
    assert (request["path"], request["key"]) == ("/v1/chat/completions", "Bearer secret")
    del request["path"], request["key"]
    sampled = {"n": 1, "temperature": 0.5, "top_p": 0.9, "top_k": 20, "max_tokens": 7, "seed": 3}
    assert request == {"model": "a-model", "messages": MESSAGES, **sampled}


def test_a_busy_server_is_asked_again() -> None:
    statuses = iter([429, 503, 200])
    with server(lambda request: (next(statuses), completion("yes"))) as (url, requests):
        assert replies(url) == ["yes"]
    assert len(requests) == 3


def test_a_parameter_that_the_server_refuses_is_left_out() -> None:
    def answer(request: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if "logprobs" in request:
            return refusal("logprobs are not supported with this model")
        return 200, completion("yes", finish_reason="length")

    with server(answer) as (url, requests), Endpoint(url, ModelSettings(model="a-model")) as endpoint:
        for _ in range(2):
            scored = endpoint.run(endpoint.scored_reply(MESSAGES, Sampling()))
            assert scored == [Reply("yes", None, cut=True)]
    assert len(requests) == 3


def test_a_prompt_without_room_gets_an_empty_reply_and_a_long_one_what_is_left() -> None:
    def answer(request: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if "max_tokens" in request or request["messages"][0]["content"] == "long":
            return refusal("This model's maximum context length is 10 tokens.")
        return 200, completion("cut", finish_reason="length")

    with server(answer) as (url, _), Endpoint(url, ModelSettings(model="a-model")) as endpoint:
        assert endpoint.run(endpoint.reply(MESSAGES, Sampling(max_tokens=9))) == ["cut"]
        assert endpoint.without_room == 0
        long = [{"role": "user", "content": "long"}]
        assert endpoint.run(endpoint.reply(long, Sampling(n=2, max_tokens=9))) == ["", ""]
        assert endpoint.without_room == 1


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"content": "<action>look</action>", "reasoning": "hm"}, "<think>hm</think><action>look</action>"),
        ({"content": "<action>look</action>", "reasoning_content": "hm"}, "<think>hm</think><action>look</action>"),
        ({"content": None, "reasoning": "hm"}, "<think>hm"),
        ({"content": "hm</think><action>look</action>"}, "<think>hm</think><action>look</action>"),
        ({"content": "<think>hm</think>x"}, "<think>hm</think>x"),
        ({"content": None}, ""),
    ],
)
def test_a_thought_comes_before_the_answer(message: dict[str, Any], text: str) -> None:
    with server(lambda request: (200, completion(**message))) as (url, _):
        assert replies(url) == [text]


@pytest.mark.parametrize(
    ("status", "kind"), [(401, ConfigError), (403, ConfigError), (404, ConfigError), (422, EngineError)]
)
def test_an_error_names_the_endpoint(status: int, kind: type[Exception]) -> None:
    with (
        server(lambda request: (status, {"error": {"message": "no"}})) as (url, requests),
        pytest.raises(kind, match=url),
    ):
        replies(url)
    assert len(requests) == 1


def test_nobody_at_the_address_is_an_error() -> None:
    url = f"http://127.0.0.1:{free_port()}/v1"
    with Endpoint(url, ModelSettings(model="a-model"), retries=1) as endpoint, pytest.raises(EngineError, match=url):
        endpoint.run(endpoint.reply(MESSAGES, Sampling()))


@pytest.mark.parametrize(
    ("option", "change"),
    [
        ("endpoint", {"endpoint": "localhost:8000"}),
        ("endpoint", {"endpoint": "http://[1"}),
        ("endpoint", {"endpoint": "http://user:secret@host/v1"}),
        ("mode", {"mode": "concat"}),
        ("rationale", {"rationale": ["wrong"], "pairs": [Path("pairs.parquet")]}),
        ("engine_options", {"engine_options": {"enforce_eager": True}}),
    ],
)
def test_what_an_endpoint_cannot_do_is_refused(option: str, change: dict[str, Any]) -> None:
    settings = EvaluationSettings(**{"model": "a-model", "endpoint": "http://127.0.0.1:1/v1", **change})
    with pytest.raises(OptionError) as error:
        check_settings(settings)
    assert error.value.option == option
    assert "secret" not in str(error.value)


def test_an_endpoint_has_its_own_context() -> None:
    """The default length of a local engine bounds no reply of a server."""
    settings = {"model": "a-model", "reasoning_max_tokens": 8000}
    check_settings(EvaluationSettings(endpoint="http://127.0.0.1:1/v1", **settings))
    with pytest.raises(OptionError):
        check_settings(EvaluationSettings(**settings))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def vllm_server(log: Path) -> Iterator[str]:
    """vLLM's own server with the embedded model; stopped by its process group at the end."""
    port = free_port()
    options = {"model": MODEL, "max-model-len": "512", "host": "127.0.0.1", "port": str(port), "dtype": "float32"}
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--enforce-eager"]
    command += ["--no-enable-chunked-prefill", "--max-num-batched-tokens", "8192"]
    command += [word for name, value in options.items() for word in (f"--{name}", value)]
    environment = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_API_KEY": "secret"}
    with log.open("w") as stream:
        process = subprocess.Popen(
            command, env={**os.environ, **environment}, stdout=stream, stderr=stream, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 400
        while True:
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except OSError:
                time.sleep(1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.slow
def test_vllms_own_server_gives_the_metrics_of_the_local_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Greedy replies to the same prompts are the same, and so are all metrics."""
    pairs, steps = (
        [make(number, split="valid_seen").to_row() for number in range(12)] for make in (make_pair, make_step)
    )
    write_rows(tmp_path / "pairs.parquet", pairs, PAIR)
    write_rows(tmp_path / "steps.parquet", steps, TRAJECTORY)
    settings = EvaluationSettings(
        model=MODEL,
        # The prompts fit, but not with the longest reply.
        max_model_len=512,
        max_tokens=480,
        pairs=[tmp_path / "pairs.parquet"],
        trajectories=[tmp_path / "steps.parquet"],
        template="compact",
    )
    evaluate_model(settings, tmp_path / "local")
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    with vllm_server(tmp_path / "server.log") as url:
        elsewhere = settings.model_copy(update={"endpoint": url})
        evaluate_model(elsewhere, tmp_path / "remote")
        monkeypatch.setenv("OPENAI_API_KEY", "wrong")
        with pytest.raises(ConfigError, match="OPENAI_API_KEY"):
            evaluate_model(elsewhere, tmp_path / "refused")
    local, remote = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("local", "remote"))
    assert local["metrics"]["valid_seen"]["choice"]["items"] == 12
    assert incomparable(local, remote) == []
    for metrics in (local, remote):
        del metrics["seconds"], metrics["protocol"]["engine"]
    assert remote == local
    for file in ("choices.jsonl", "next_actions.jsonl"):
        both = [read_lines(tmp_path / folder / file) for folder in ("local", "remote")]
        for here, there in zip(*both, strict=True):
            assert there.pop("log_probability", 0) == pytest.approx(here.pop("log_probability", 0), abs=1e-3)
            assert here == there
    assert "secret" not in (tmp_path / "remote" / "manifest.json").read_text()


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]

"""A worker on Ray that fails: what is said of it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import ray

from verl_act.ray_session import ray_session, worker_failed


@pytest.mark.slow
def test_a_failed_worker_is_named_with_the_files_that_hold_the_reason() -> None:
    class Failing:  # here, so that it travels to workers, which cannot import this module
        """As an engine of `data alternatives`: the reason is printed by a process below, and the error names none."""

        def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
            os.system("echo the reason")
            raise RuntimeError("the engine is dead; see above")

    with ray_session():
        rows = ray.data.from_items([{"index": 0}]).map_batches(Failing, compute=ray.data.ActorPoolStrategy(size=1))
        with pytest.raises(ray.exceptions.RayError) as caught:
            list(rows.iter_rows())
    message = str(worker_failed(caught.value))
    assert message.startswith("a worker on Ray failed: RuntimeError: the engine is dead; see above ")
    assert len(message.splitlines()) == 1 < len(str(caught.value).splitlines())
    pattern = next(word for word in message.split() if word.endswith(".out")).removeprefix("/")
    (log,) = {path.resolve() for path in Path("/").glob(pattern)}  # the session has a second name
    assert "the reason" in log.read_text()


def test_ray_itself_may_have_failed() -> None:
    error = ray.exceptions.RaySystemError("no node is left")
    assert "no node is left" in str(worker_failed(error)) and "worker-*-*.out" in str(worker_failed(error))

"""When a process gives up: many groups have failed, and nothing that might still succeed is under way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, suppress
from types import SimpleNamespace

import pytest
import ray
import transfer_queue as tq
from verl.trainer.ppo.v1.trainer_base import PPOTrainer

from verl_act.errors import EnvError
from verl_act.upstream_gaps.failed_rollouts import GROUPS, Failures, JobBoard, LocalBoard


def fail(failures: Failures, groups: int, name: str = "group") -> None:
    for number in range(groups):
        with suppress(EnvError), failures.watch(f"{name} {number}"):
            raise EnvError("no such game file")


def test_it_gives_up_after_so_many_groups_and_says_why() -> None:
    board = LocalBoard()
    failures = Failures(board)
    for _ in range(8):  # the episodes of a group
        fail(failures, GROUPS - 1)
    assert board.read() == ("EnvError: no such game file", "")
    fail(failures, 1, "last")
    _, notice = board.read()
    assert notice.startswith(f"{GROUPS} groups of episodes in a row have failed")
    assert notice.endswith("the last failed with EnvError: no such game file")


def test_an_episode_that_ends_starts_the_count_anew() -> None:
    board = LocalBoard()
    failures = Failures(board)
    for _ in range(3):
        fail(failures, GROUPS - 1)
        with failures.watch("good"):
            pass
    assert board.read()[1] == ""


def test_what_began_before_the_first_failure_is_waited_for() -> None:
    """Many broken games fail at once, while the good ones of the same step are still being played."""
    board = LocalBoard()
    failures = Failures(board)
    with failures.watch("good"):
        fail(failures, 3 * GROUPS)
    fail(failures, GROUPS - 1)
    assert board.read()[1] == ""
    with ExitStack() as later:
        fail(failures, 1)
        later.enter_context(failures.watch("begun after the first failure"))
        fail(failures, GROUPS)
        assert board.read()[1]


def test_an_episode_that_ends_withdraws_its_process_s_notice() -> None:
    board = LocalBoard()
    failures, other = Failures(board), Failures(board)
    fail(failures, GROUPS)
    with other.watch("good"):
        pass
    assert board.read()[1], "what another process plays says nothing about this one"
    with failures.watch("good"):
        pass
    assert board.read()[1] == ""
    fail(failures, 1)
    assert board.read()[1] == "", "the count starts anew"
    fail(failures, GROUPS)
    assert board.read()[1]


@pytest.fixture(scope="module")
def job() -> Iterator[None]:
    """A Ray job with verl's queue for the outputs of episodes."""
    ray.init(num_cpus=16, include_dashboard=False, log_to_driver=False)  # the queue asks for ten
    tq.init()
    yield
    tq.close()
    ray.shutdown()


def validation(*outputs: str) -> SimpleNamespace:
    """What verl's validation needs of a trainer until it has the outputs of a batch, which here are `outputs`."""
    batch = {"raw_prompt": ["prompt"], "data_source": ["act/alfworld/episode"]}
    rollout = SimpleNamespace(val_kwargs=SimpleNamespace(n=1))
    found = SimpleNamespace(keys=list(outputs), partition_id="val")
    return SimpleNamespace(
        val_dataloader=[batch],
        global_steps=0,
        config=SimpleNamespace(actor_rollout_ref=SimpleNamespace(rollout=rollout)),
        agent_loop_manager=SimpleNamespace(generate_sequences=lambda _: None),
        replay_buffer=SimpleNamespace(sample=lambda **_: (found, {})),
        reward_loop_manager=SimpleNamespace(reward_loop_worker_handles=[]),
    )


@pytest.mark.slow
def test_a_validation_in_which_every_episode_fails_says_why(job: None) -> None:
    with pytest.raises(ValueError, match="empty list as keys"):  # what verl says: the gap
        PPOTrainer.__dict__["_validate"].__wrapped__(validation())
    fail(Failures(JobBoard()), 1)
    with pytest.raises(EnvError, match=r"EnvError: no such game file$"):
        PPOTrainer._validate(validation())


@pytest.mark.slow
def test_a_validation_that_comes_through_withdraws_every_notice(job: None) -> None:
    board = JobBoard()
    failures = Failures(board)
    fail(failures, GROUPS)
    trainer = SimpleNamespace(_next_train_batch=lambda count: count, _submit_batch_to_rollout=lambda count: count)
    with pytest.raises(EnvError, match=r"\b16\b"):
        PPOTrainer._add_prompts_to_generate(trainer, 1)
    nothing_to_validate = SimpleNamespace(
        val_dataloader=[],
        config=SimpleNamespace(trainer={}),
        _maybe_log_val_generations=lambda **_: None,
        _val_metrics_update=lambda *_, **__: {"val": 1.0},
    )
    assert PPOTrainer._validate(nothing_to_validate) == {"val": 1.0}
    assert PPOTrainer._add_prompts_to_generate(trainer, 1) == 1

"""When a process gives up: many groups have failed, and nothing that might still succeed is under way."""

from __future__ import annotations

from contextlib import ExitStack, suppress

from verl_act.errors import EnvError
from verl_act.rollout.failures import GROUPS, Failures


def fail(failures: Failures, groups: int, name: str = "group") -> None:
    for number in range(groups):
        with suppress(EnvError), failures.watch(f"{name} {number}"):
            raise EnvError("no such game file")


def test_it_gives_up_after_so_many_groups_and_says_why() -> None:
    said: list[str] = []
    failures = Failures(said.append)
    for _ in range(8):  # the episodes of a group
        fail(failures, GROUPS - 1)
    assert said == []
    fail(failures, 1, "last")
    assert len(said) == 1
    assert said[0].startswith(f"{GROUPS} groups of episodes in a row have failed")
    assert said[0].endswith("the last failed with EnvError: no such game file")


def test_an_episode_that_ends_starts_the_count_anew() -> None:
    said: list[str] = []
    failures = Failures(said.append)
    for _ in range(3):
        fail(failures, GROUPS - 1)
        with failures.watch("good"):
            pass
    assert said == []


def test_what_began_before_the_first_failure_is_waited_for() -> None:
    """Many broken games fail at once, while the good ones of the same step are still being played."""
    said: list[str] = []
    failures = Failures(said.append)
    with failures.watch("good"):
        fail(failures, 3 * GROUPS)
    fail(failures, GROUPS - 1)
    assert said == []
    with ExitStack() as later:
        fail(failures, 1)
        later.enter_context(failures.watch("begun after the first failure"))
        fail(failures, GROUPS)
        assert said

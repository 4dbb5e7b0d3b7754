"""WebShop: the contract, experts, episodes, trajectories and pairs, on its own catalogue."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small_shop import opened
from typer.testing import CliRunner

from verl_act.__main__ import app
from verl_act.data_prep.expert.collect_expert import collect_expert, play
from verl_act.data_prep.pairs.build_pairs import build_pairs
from verl_act.data_prep.pairs.check_pairs import check_pairs
from verl_act.envs.base import Task
from verl_act.envs.contract import check_environment
from verl_act.envs.registry import get_env
from verl_act.envs.webshop.environment import WebShopEnvironment
from verl_act.envs.webshop.goals import SPLITS, list_tasks
from verl_act.envs.webshop.shopper import ShopperExpert
from verl_act.errors import ConfigError, EnvError
from verl_act.schema import ALTERNATIVES, TRAJECTORY, Alternatives, read_pairs, read_steps, write_rows
from verl_act.settings.data import AuditSettings, ExpertSettings, PairsSettings

pytest_plugins = "small_shop"

SPEC = get_env("webshop")


@pytest.mark.parametrize("split", SPLITS)
def test_webshop_keeps_the_contract(split: str) -> None:
    check_environment(SPEC, split)


@pytest.mark.parametrize("settings", [{"observation": "text_rich"}, {"observation": "brief"}, {"goals": "synthetic"}])
def test_every_setting_keeps_the_contract(settings: dict[str, Any]) -> None:
    check_environment(SPEC, "train", settings, seed=3)


def test_the_experts_win_and_chance_does_not() -> None:
    environment = WebShopEnvironment()
    tasks = random.Random(1).sample(list_tasks("test"), 100)
    won = {name: 0 for name in SPEC.experts}
    for name, make in SPEC.experts.items():
        for task in tasks:
            won[name] += play(environment, make(), task, source=name)[-1].success
    assert won["goal"] == 100 and won["shopper"] >= 88
    lucky = 0
    for task in tasks:
        rng, shown = random.Random(task.task_id), environment.reset(task)
        actions = shown.admissible_actions
        for _ in range(15):
            result = environment.step(rng.choice(actions))
            lucky += result.success
            actions = result.admissible_actions
            if result.done:
                break
    assert lucky <= 3


def test_the_shopper_reads_every_style_alike_and_asks_no_environment() -> None:
    acted = []
    for style in ("text", "brief", "text_rich"):
        environment = WebShopEnvironment(observation=style)

        class Blind(ShopperExpert):
            def act(self, context: Any, environment: Any = None) -> tuple[str, bool]:
                return super().act(context)

        steps = [play(environment, Blind(), task, source="x") for task in list_tasks("dev")[:15]]
        acted.append([(step.action, step.inferable, step.success) for episode in steps for step in episode])
    assert acted[0] == acted[1] == acted[2]
    assert 0.8 < sum(inferable for _, inferable, _ in acted[0]) / len(acted[0]) < 1


def test_interleaved_episodes_are_strangers(shop: Path) -> None:
    (first, _), (second, _) = opened(shop), opened(shop)
    first.step("search[teapot]")
    first.step("click[b00teapot1]")
    first.step("click[green]")
    assert second.step("search[mug]").observation.count("Stoneware Mug") == 10
    assert second.step("click[green]").admissible is False
    assert first.step("click[buy now]").reward == 1.0
    assert second.plan_length() is not None and not second.step("click[next >]").done


def test_trajectories_and_pairs(tmp_path: Path) -> None:
    collect_expert(ExpertSettings(env="webshop", split="train", limit=12, workers=0), tmp_path / "x")
    steps = read_steps([tmp_path / "x" / "trajectories.parquet"])
    assert all(step.verified and step.success and step.plan_length is not None for step in steps)
    trajectories = [tmp_path / "x" / "trajectories.parquet"]
    build_pairs(
        PairsSettings(trajectories=trajectories, source="admissible", max_alternatives_per_state=2, workers=0),
        tmp_path / "p",
    )
    pairs = read_pairs([tmp_path / "p" / "pairs.parquet"])
    assert pairs and all(pair.alternative_admissible and (pair.margin or 0) > 0 for pair in pairs)
    result = CliRunner().invoke(app, ["data", "tasks", "--out", str(tmp_path / "t"), "--splits", "dev", "webshop"])
    assert result.exit_code == 0, result.output


def test_a_search_that_no_list_has_is_sound_in_a_pair(tmp_path: Path) -> None:
    """The shop takes any words: from a policy that samples them, and from an expert whose trajectory was imported."""
    collect_expert(ExpertSettings(env="webshop", split="dev", limit=3, workers=0), tmp_path / "e")
    steps = read_steps([tmp_path / "e" / "trajectories.parquet"])
    searched = [step for step in steps if step.action.startswith("search[")]
    own = {step.state_id: replace(step, action=f"{step.action[:-1]} please]") for step in searched}
    imported = [own.get(step.state_id, step) for step in steps]
    write_rows(tmp_path / "imported.parquet", [step.to_row() for step in imported], TRAJECTORY)
    reply = "<action>search[a kettle]</action>"
    rows = [Alternatives(state_id=step.state_id, replies=(reply,), model="m", sampling="{}").to_row() for step in steps]
    write_rows(tmp_path / "alternatives.parquet", rows, ALTERNATIVES)
    build_pairs(
        PairsSettings(
            trajectories=[tmp_path / "imported.parquet"],
            alternatives=[tmp_path / "alternatives.parquet"],
            keep_nonpositive_margin=True,
            workers=0,
        ),
        tmp_path / "p",
    )
    pairs = read_pairs([tmp_path / "p" / "pairs.parquet"])
    assert {step.action for step in own.values()} <= {pair.expert_action for pair in pairs}
    kettles = [pair for pair in pairs if pair.alternative_action == "search[a kettle]"]
    assert len(kettles) > len(searched) and all(pair.alternative_admissible for pair in kettles)
    errors = check_pairs(AuditSettings(pairs=[tmp_path / "p" / "pairs.parquet"])).errors
    assert not {finding.check for finding in errors} & {"admissible flag", "expert's action admissible"}


@pytest.mark.parametrize(
    "settings", [{"max_steps": 0}, {"observation": "html"}, {"nouns": "no_such_model"}, {"goals": "both"}]
)
def test_impossible_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        WebShopEnvironment(**settings).reset(list_tasks("test")[0])


@pytest.mark.parametrize("task_id", ["0-B000000000", "x", "-1-B0", "99999999999999999-B0", "4000-B0", "１-B0"])
def test_unknown_tasks_are_refused(task_id: str) -> None:
    environment = WebShopEnvironment()
    environment.reset(list_tasks("test")[0])
    with pytest.raises(EnvError, match=r"WebShop task|another goal"):
        environment.reset(Task("webshop", "test", task_id, "x"))
    for never_or_no_longer in (WebShopEnvironment(), environment):
        with pytest.raises(EnvError, match="reset"):
            never_or_no_longer.step("search[x]")


def test_running_out_of_steps_is_no_success(shop: Path) -> None:
    environment, _ = opened(shop, max_steps=2)
    environment.step("search[teapot]")
    last = environment.step("click[b00teapot1]")
    assert (last.done, last.success, last.admissible) == (True, False, True)
    after = environment.step("click[buy now]")
    assert (after.done, after.success, after.admissible, after.reward) == (True, False, False, 0.0)


@pytest.mark.slow
def test_webshop_plays_alike_in_the_pool_and_here(tmp_path: Path) -> None:
    import ray

    from verl_act.envs.pool import EnvPool

    tasks = list_tasks("dev")[:4]
    actions = ["search[black shoes]", "click[next >]", "click[nothing]", "search[tea]", "click[back to search]"]

    async def episode(pool: EnvPool, task: Task) -> list[object]:
        session = await pool.open(task)
        shown: list[object] = [session.first, *[await session.step(action) for action in actions]]
        await session.close()
        return shown

    async def run() -> list[list[object]]:
        pool = EnvPool("webshop", {"observation": "brief"})
        return await asyncio.gather(*(episode(pool, task) for task in tasks))

    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        played = asyncio.run(run())
    finally:
        ray.shutdown()
    environment = WebShopEnvironment(observation="brief")
    for task, shown in zip(tasks, played, strict=True):
        assert shown == [environment.reset(task), *(environment.step(action) for action in actions)]


def test_importing_the_registry_imports_no_search_engine() -> None:

    code = "import sys, verl_act.envs.registry; print({'regex', 'scipy.sparse', 'rapidfuzz'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout.strip() == "set()", run.stderr

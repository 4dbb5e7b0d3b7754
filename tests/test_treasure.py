"""Cross-cutting: `examples/treasure`, a package like any other: found by entry points, sound, fit for all stages."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from verl_act.chain import load_recipe
from verl_act.chain.check import check_settings, compose
from verl_act.chain.plan import run_plan
from verl_act.data_prep.embedded.make_embedded_model import make_embedded_model
from verl_act.data_prep.expert.collect_expert import collect_expert
from verl_act.data_prep.expert.make_tasks import make_tasks
from verl_act.data_prep.imports.import_trajectories import import_trajectories
from verl_act.data_prep.pairs.build_pairs import build_pairs
from verl_act.doctor.checks import CheckState, environment_checks, examine
from verl_act.envs.base import SnapshotEnvironment
from verl_act.envs.contract import check_environment
from verl_act.envs.registry import get_env, known_envs
from verl_act.errors import ConfigError
from verl_act.run_folder import RunFolder
from verl_act.schema import read_pairs, read_steps
from verl_act.settings.data import EmbeddedModelSettings, ExpertSettings, ImportSettings, PairsSettings, TasksSettings

EXAMPLE = Path(__file__).parent.parent / "examples" / "treasure"
NAMES = ("treasure", "treasure_gym")


@pytest.fixture(autouse=True)
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The example with the metadata that pip would write from its pyproject.toml."""
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    metadata = tmp_path / f"{project['name']}-{project['version']}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: 1.0\n")
    points = project["entry-points"]["verl_act.envs"]
    lines = "".join(f"{name} = {value}\n" for name, value in points.items())
    (metadata / "entry_points.txt").write_text(f"[verl_act.envs]\n{lines}")
    for path in (tmp_path, EXAMPLE):
        monkeypatch.syspath_prepend(str(path))
    yield


@pytest.mark.parametrize("name", NAMES)
def test_the_example_keeps_the_contract(name: str) -> None:
    spec = get_env(name)
    for split in spec.splits:
        check_environment(spec, split)


def test_the_example_says_what_it_can() -> None:
    assert isinstance(get_env("treasure").make(), SnapshotEnvironment)
    assert not isinstance(get_env("treasure_gym").make(), SnapshotEnvironment)


@pytest.mark.parametrize("name", NAMES)
def test_the_stages_work_on_it(name: str, tmp_path: Path) -> None:
    collect_expert(ExpertSettings(env=name, split="train", limit=20, workers=0), tmp_path / "expert")
    trajectories = [tmp_path / "expert" / "trajectories.parquet"]
    build_pairs(PairsSettings(trajectories=trajectories, source="admissible", workers=0), tmp_path / "pairs")
    assert {pair.env for pair in read_pairs([tmp_path / "pairs" / "pairs.parquet"])} == {name}
    assert make_tasks(TasksSettings(env=name, splits=["test"]), tmp_path / "tasks").counts["tasks"] == 50


def test_trajectories_are_imported_by_its_hook(tmp_path: Path) -> None:
    """Rows in others' words, with a spelling that only the example's importer knows."""
    collect_expert(ExpertSettings(env="treasure", split="train", limit=5, workers=0), tmp_path / "expert")
    steps = read_steps([tmp_path / "expert" / "trajectories.parquet"])
    rows = []
    for task, played in groupby(steps, key=lambda step: step.task_id):
        actions = [re.sub("^take ", "grab the ", step.action) for step in played]
        rows.append({"task_id": f"treasure_{task}", "actions": actions})
    rows.append({"task_id": "treasure_999", "actions": ["open box 1"]})
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    manifest = import_trajectories(
        ImportSettings(files=[tmp_path / "rows.json"], env="treasure", format="actions", workers=0), tmp_path / "out"
    )
    imported = read_steps([tmp_path / "out" / "trajectories.parquet"])
    assert [(step.action, step.inferable) for step in imported] == [(step.action, step.inferable) for step in steps]
    assert manifest.counts["rejected"] == {"no such task in these data": 1}


def test_a_small_policy_is_made_in_its_dialect(tmp_path: Path) -> None:
    collect_expert(ExpertSettings(env="treasure", split="train", limit=40, workers=0), tmp_path / "expert")
    sizes = {"vocabulary": 300, "layers": 1, "width": 32, "heads": 2, "feed_forward": 32, "steps": 2, "held_out": 4}
    trajectories = [tmp_path / "expert" / "trajectories.parquet"]
    make_embedded_model(EmbeddedModelSettings(trajectories=trajectories, batch_size=4, **sizes), tmp_path / "model")
    assert AutoTokenizer.from_pretrained(tmp_path / "model").tokenize(" open box 2")[-1] == " box 2"
    thinking = EmbeddedModelSettings(trajectories=trajectories, thoughts=True)
    with pytest.raises(ConfigError, match=r"'treasure'.*`think`"):
        make_embedded_model(thinking, tmp_path / "thinking")


def test_the_doctor_checks_it_by_its_hook() -> None:
    checks = [check for check in environment_checks() if "treasure" in check[0]]
    results = {result.name: result for result in examine(checks)}
    assert results["environment treasure"].detail == "train 200, test 50"
    assert {result.state for result in results.values()} == {CheckState.OK} and len(results) == len(NAMES)


def test_no_module_outside_envs_names_an_environment() -> None:
    names = {path.name for path in (EXAMPLE.parents[1] / "verl_act" / "envs").iterdir() if path.is_dir()}
    assert {"alfworld", "scienceworld", "webshop"} <= names <= {*known_envs(), "__pycache__"}
    package = EXAMPLE.parents[1] / "verl_act"
    files = [*package.rglob("*.py"), *(package.parent / "data_prep").rglob("*.py")]
    outside = [path for path in files if not {"envs", "chain"} & set(path.relative_to(package.parent).parts)]
    assert len(outside) > 80
    hits = [
        (path.name, node.value)
        for path in outside
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and node.value in names
    ]
    # The default of `data games`.
    assert {file for file, _ in hits} == {"data.py"}


@pytest.mark.parametrize(("recipe", "batch"), [("mine.yaml", 64), (EXAMPLE / "quickstart.yaml", 32)])
def test_the_recipes_of_the_guide_are_sound(recipe: str | Path, batch: int, tmp_path: Path) -> None:
    guide = (EXAMPLE.parents[1] / "docs" / "how-to" / "your-environment.md").read_text()
    (text,) = re.findall(r"```yaml\n(env: treasure\n.*?)```", guide, re.DOTALL)
    (tmp_path / "mine.yaml").write_text(text)
    planned = run_plan(load_recipe(str(tmp_path / recipe)), RunFolder(tmp_path / "out"))
    found = {stage.name: stage for stage in planned}
    assert {"expert train", "expert test", "alternatives", "pairs test", "critic", "action"} <= set(found)
    assert check_settings(load_recipe(str(tmp_path / recipe)), planned)
    for name in ("critic", "action"):
        assert compose(found[name]), "verl takes its configuration"
        assert found[name].override("data.train_batch_size") == batch


def test_a_fresh_process_finds_it(tmp_path: Path) -> None:
    code = "from verl_act.envs.registry import known_envs; print([n for n in known_envs() if 'treasure' in n])"
    paths = [str(tmp_path), str(EXAMPLE), str(Path.cwd())]
    run = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {paths}; {code}"], capture_output=True, text=True
    )
    assert run.stdout.strip() == "['treasure', 'treasure_gym']", run.stderr

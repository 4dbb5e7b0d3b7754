"""The check of a run: it passes where all is there, and names everything that is missing."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from recipe_stages import training, write_recipe
from samples import make_tokenizer, qwen3_8b_config

from verl_act.chain import load_recipe
from verl_act.chain.check import (
    Undecided,
    accelerators,
    check_run,
    checks,
    configuration,
    disk_space,
    recipe_words,
    sampling_accelerators,
    verl_config,
)
from verl_act.chain.method_stages import method_stages, only
from verl_act.chain.plan import run_plan
from verl_act.chain.recipe import Recipe
from verl_act.envs.registry import get_env
from verl_act.errors import ConfigError
from verl_act.preflight import Devices, Problem, check_training, model_shape
from verl_act.preflight.capacity import capacity_problems, count_problems
from verl_act.run_folder import RunFolder
from verl_act.schema import read_steps


def test_the_check_passes_where_all_is_there(policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes = [f"model={policy}", "games.counts={train: 3, valid_seen: 1, valid_unseen: 1}"]
    check_run(load_recipe("alfworld/quickstart", changes), RunFolder(tmp_path / "out"), [0])
    shown = capsys.readouterr().out
    assert "wrong" not in shown
    for subject in ("versions", "device: cpu", "model", "prompt", "data: 5 games", "disk", "critic configuration"):
        assert f"ok    {subject}" in shown


def disk(recipe: Recipe, out: Path, free_gib: int, monkeypatch: pytest.MonkeyPatch, seeds: Sequence[int] = (0,)) -> str:
    usage = SimpleNamespace(free=free_gib * 2**30)
    monkeypatch.setattr("verl_act.chain.check.shutil.disk_usage", lambda _: usage)
    folder = RunFolder(out)
    planned = method_stages(recipe, folder, seeds) if recipe.methods else run_plan(recipe, folder)
    return disk_space(recipe, folder, planned)


def test_the_check_knows_what_checkpoints_and_models_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    qwen3_8b_config().save_pretrained(tmp_path / "model")
    change = f"model={tmp_path / 'model'}"
    full, out = load_recipe("alfworld/full", [change]), tmp_path / "out"
    # Two checkpoints that are kept and one being written, of 131 GB each; two models of 33 GB.
    assert disk(full, out, 428, monkeypatch) == "428 GiB free, 427 needed"
    with pytest.raises(ConfigError, match=r"\b426\.0\b.*\b427\b.*\b2\b"):
        disk(full, out, 426, monkeypatch)
    many = load_recipe("alfworld/full", [change, "training.critic.overrides.trainer.max_actor_ckpt_to_keep=9999"])
    with pytest.raises(ConfigError, match=r"\b\d{7}\b"):
        disk(many, out, 426, monkeypatch)
    names = ["Self-reflection", "ACT", "IL", "RL", "ACT -> IL", "ACT -> RL"]
    methods = only(load_recipe("alfworld/methods_full", [change]), names)
    assert disk(methods, out, 9999, monkeypatch) == "9999 GiB free, 549 needed", "six models"
    with pytest.raises(ConfigError, match=r"\b915\b.*\b18\b"):
        disk(methods, out, 800, monkeypatch, seeds=(0, 1, 2))
    for stage in method_stages(methods, RunFolder(out), [0]):
        stage.output.mkdir(parents=True, exist_ok=True)
    assert disk(methods, out, 3, monkeypatch) == "3 GiB free, 2 needed", "all is trained"
    with pytest.raises(ConfigError, match=r"\b1\.0\b.*\b2\b"):
        disk(methods, out, 1, monkeypatch)


def test_the_check_warns_of_checkpoints_without_a_bound(tmp_path: Path) -> None:
    change = "training.critic.overrides.trainer.max_actor_ckpt_to_keep=null"
    recipe = load_recipe("alfworld/quickstart", [change, "training.critic.overrides.trainer.total_training_steps=null"])
    stages = training(recipe, tmp_path)
    told = configuration(recipe, stages["critic"])
    assert isinstance(told, Undecided)
    assert "training.critic.overrides.trainer.max_actor_ckpt_to_keep=2" in told
    assert not isinstance(configuration(recipe, stages["action"]), Undecided)


def test_a_model_whose_size_is_not_known_is_a_doubt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = load_recipe("alfworld/quickstart", ["model=organisation/model"])
    found = disk(recipe, tmp_path, 50, monkeypatch)
    assert isinstance(found, Undecided) and "config.json of organisation/model cannot be read" in found
    assert "56 bytes a parameter" in found and "2 trained models" in found
    monkeypatch.setattr("verl_act.chain.check.checks", lambda *_: [("disk", lambda: found)])
    check_run(recipe, RunFolder(tmp_path), [0])
    assert capsys.readouterr().out.startswith("warn  disk: 50 GiB free; unknown how much")
    with pytest.raises(ConfigError, match=r"\b1\.0\b.*\b2\b"):
        disk(recipe, tmp_path, 1, monkeypatch)


def test_the_check_reads_every_methods_prompt(policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tmp_path / "model"
    shutil.copytree(policy, model)
    strict = "{% if enable_thinking is defined %}{{ raise_exception('it always thinks') }}{% endif %}"
    tokenizer = make_tokenizer(["go"])
    tokenizer.chat_template = strict + str(tokenizer.chat_template)
    tokenizer.save_pretrained(model)
    prompts = {
        "As it is": {},
        "Typo": {"template": "no_such_template"},
        "Option": {"template_options": {"history_lenght": 3}},
        "Thinks": {"chat_template_kwargs": {"enable_thinking": False}},
        "Other": {"template_options": {"history_length": 3}, "chat_template_kwargs": {"other": 1}},
    }
    methods = {name: {"stages": [], **prompt} for name, prompt in prompts.items()}
    games = {"counts": {"train": 3, "valid_seen": 1, "valid_unseen": 1}}
    settings = {"base": "alfworld/quickstart", "model": str(model), "games": games, "methods": methods}
    recipe = load_recipe(write_recipe(tmp_path, yaml.safe_dump(settings, sort_keys=False)))
    with pytest.raises(ConfigError, match=": prompt of Typo, prompt of Option, prompt of Thinks, settings "):
        check_run(recipe, RunFolder(tmp_path / "out"), [1, 2])
    shown = capsys.readouterr().out
    assert "wrong prompt of Typo: no template is called 'no_such_template'" in shown
    assert "history_lenght" in shown and "with chat_template_kwargs={'enable_thinking': False}" in shown
    assert "it always thinks" in shown and "ok    prompt of Other: CompactTemplate" in shown


def test_the_check_names_everything_that_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes = [f"model={tmp_path}/nowhere", "games.counts=null", f"env_settings={{data: {tmp_path}}}", "device=null"]
    changes.append(f"evaluate.reasoning=[{tmp_path}/questions.csv]")
    recipe = load_recipe("alfworld/quickstart", [*changes, "template=compcat"])
    recipe.training["critic"].overrides["data"]["train_batchsize"] = 8
    with pytest.raises(ConfigError, match="device, model, prompt, settings, data, reasoning, critic configuration"):
        check_run(recipe, RunFolder(tmp_path / "out"), [0])
    shown = capsys.readouterr().out
    assert "Add device=cpu" in shown
    assert "config.json is missing" in shown and "Give a Hugging Face folder or model id" in shown
    assert "no template is called 'compcat'" in shown
    assert re.search(rf"wrong data: .*{tmp_path}", shown)
    assert f"{tmp_path}/questions.csv: no such file" in shown
    assert "data.train_batchsize" in shown and "training.critic.overrides" in shown
    assert not (tmp_path / "out").exists(), "a check writes nothing"


def test_trajectories_of_ones_own_stand_in_for_the_expert(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = [
        "env=webshop",
        "games.counts=null",
        "valid_splits=[dev]",
        "expert={name: goal, limits: {train: 3, dev: 2}}",
    ]
    theirs = tmp_path / "theirs"
    for stage in run_plan(load_recipe("alfworld/quickstart", changes), RunFolder(theirs))[:2]:
        stage.definition.run(stage.settings, stage.output)
    steps = read_steps(list(map(RunFolder(theirs).trajectories, ("train", "dev"))))
    rows = [
        {"task_id": task, "actions": [step.action for step in steps if step.task_id == task]}
        for task in dict.fromkeys(step.task_id for step in steps)
    ]
    published = tmp_path / "published.jsonl"
    published.write_text("".join(json.dumps(row) + "\n" for row in rows))

    monkeypatch.chdir(tmp_path)
    own = [*changes, "expert.files={train: [published.jsonl]}"]
    folder = RunFolder(tmp_path / "out")
    made = run_plan(load_recipe("alfworld/quickstart", own), folder)
    assert [stage.name for stage in made[:2]] == ["expert train", "expert dev"]
    assert [getattr(stage, "command", "") for stage in made[:2]] == ["data import", "data expert"]
    assert list(made[0].inputs)[:1] == [published]
    made[0].definition.run(made[0].settings, made[0].output)
    kept = read_steps([folder.trajectories("train")])
    assert [step.action for step in kept] == [step.action for step in steps if step.split == "train"]
    rejected = (tmp_path / "out" / "expert" / "train" / "rejected.jsonl").read_text().splitlines()
    assert [json.loads(line)["kind"] for line in rejected] == ["of another split"] * 2

    for change in ("expert.files={train: [nowhere.jsonl]}", "expert.name=gold"):
        with pytest.raises(ConfigError, match="settings"):
            check_run(load_recipe("alfworld/quickstart", [*changes, change]), RunFolder(tmp_path), [0])
    shown = capfd.readouterr().out
    assert "nowhere.jsonl: no such file of trajectories. (expert train)" in shown
    assert "expert.name is 'gold'" in shown


FOUR, EIGHT = (Devices("cuda", count, 85_000_000_000) for count in (4, 8))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ([], r"\b8\b.*\b4\b.*training\.critic\.overrides\.trainer\.n_gpus_per_node=4"),
        (["trainer.n_gpus_per_node=4"], None),
        (
            ["trainer.n_gpus_per_node=3", "actor_rollout_ref.rollout.tensor_model_parallel_size=2"],
            r"\b3\b.*\b2\b.*training\.critic\.overrides\.\S*tensor_model_parallel_size=1",
        ),
    ],
)
def test_the_check_counts_accelerators(changes: list[str], message: str | None, tmp_path: Path) -> None:
    recipe = load_recipe("alfworld/full", [f"training.critic.overrides.{change}" for change in changes])
    stage = training(recipe, tmp_path)["critic"]
    if message is None:
        assert accelerators(recipe, stage, FOUR) == "4 of 4"
    else:
        with pytest.raises(ConfigError, match=message):
            accelerators(recipe, stage, FOUR)


def test_the_engines_that_sample_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray would wait for the devices for ever."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("verl_act.chain.check.local_devices", lambda: FOUR)
    recipe = load_recipe("alfworld/full")
    assert recipe.alternatives.workers == 8
    named = dict(checks(recipe, RunFolder(tmp_path), [0]))
    with pytest.raises(ConfigError, match=r"alternatives\.workers=4"):
        named["alternatives accelerators"]()
    for fitting in ("alternatives.workers=4", "alternatives.gpus_per_worker=0.5"):
        assert sampling_accelerators(load_recipe("alfworld/full", [fitting]), FOUR) == "4 of 4"
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert "alternatives accelerators" not in dict(checks(recipe, RunFolder(tmp_path), [0])), "they are the cluster's"


def test_a_machine_that_shows_no_gpu_is_told_so(
    policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("verl_act.chain.check.local_devices", lambda: Devices("cuda", 0, 0))
    recipe = load_recipe("alfworld/quickstart", [f"model={policy}", "device=null"])
    with pytest.raises(ConfigError, match="device"):
        check_run(recipe, RunFolder(tmp_path / "out"), [0])
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("wrong device"))
    assert all(word in line for word in ("nvidia-smi", "--gpus all", "CUDA_VISIBLE_DEVICES"))
    assert "n_gpus_per_node" not in line


WORD = re.compile(r"(?<![\w>=-])\+*[a-z_][\w./+]*=(?!=)[^\s,()]*[^\s,().]")
"""A word of the command line in a remedy."""
ACTORS = "training.action.overrides.data.act.episode.actors=1"
CRITIC, ROLE = "training.critic.overrides", "training.critic.overrides.actor_rollout_ref"


@pytest.mark.parametrize(
    ("name", "stage", "changes"),
    [
        ("alfworld/full", "critic", []),
        ("alfworld/full", "critic", [f"{ROLE}.rollout.gpu_memory_utilization=0.95"]),
        ("alfworld/full", "critic", [f"{ROLE}.rollout.gpu_memory_utilization=0.05"]),
        ("alfworld/full", "critic", [f"{ROLE}.actor.ppo_max_token_len_per_gpu=6000"]),
        ("alfworld/full", "critic", [f"{ROLE}.actor.ppo_max_token_len_per_gpu=120000"]),
        ("alfworld/full", "critic", ["max_model_len=5000"]),
        ("alfworld/full", "critic", [f"{ROLE}.rollout.max_model_len=5000"]),
        ("alfworld/full", "critic", ["max_model_len=50000"]),
        ("alfworld/full", "critic", [f"{CRITIC}.trainer.max_actor_ckpt_to_keep=null"]),
        ("alfworld/full", "critic", [f"{CRITIC}.trainer.n_gpus_per_node=16"]),
        ("scienceworld/full", "action", ["training.action.data=episodes", ACTORS]),
        ("alfworld/methods_full", "il", []),
        ("alfworld/methods_full", "il", ["training.il.overrides.data.max_token_len_per_gpu=4096"]),
        ("alfworld/methods_full", "il", ["training.il.overrides.data.max_token_len_per_gpu=100000"]),
        ("alfworld/methods_full", "il", ["training.il.overrides.trainer.n_gpus_per_node=1"]),
        ("alfworld/methods_full", "dpo", ["training.dpo.overrides.trainer.n_gpus_per_node=1"]),
        ("alfworld/methods_full", "dpo", ["training.dpo.overrides.data.micro_batch_size_per_gpu=8"]),
    ],
)
def test_what_a_remedy_says_can_be_given_to_the_recipe(
    name: str, stage: str, changes: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On 8 GPUs without FlashAttention: each word that is printed is taken by `run`, and the problem is gone."""
    monkeypatch.setattr("verl_act.preflight.vllm_is_cpu_build", lambda: False)
    monkeypatch.setattr("verl_act.preflight.attention_packages", dict)
    qwen3_8b_config().save_pretrained(tmp_path)
    shape = model_shape(str(tmp_path))

    def told(*words: str) -> dict[str, str]:
        """First words of a message -> its remedy."""
        recipe = load_recipe(name, [f"stages=[{stage}]", *changes, *words])
        planned = training(recipe, tmp_path)[stage]
        config = verl_config(planned)
        problems: list[Problem] = [*check_training(config, shape, EIGHT, 10**13), *count_problems(config, EIGHT)]
        if recipe.training[stage].data == "episodes":
            problems += capacity_problems(config, get_env(recipe.env).max_episodes)
        words_of = recipe_words(recipe, planned)
        return {" ".join(one.message.split()[:2]): one.fix(words_of) for one in problems}

    found = told()
    assert found
    for message, fix in found.items():
        words = WORD.findall(fix)
        assert words and all(
            re.match(rf"device=|max_model_len=|training\.{stage}\.overrides\.", word) for word in words
        )
        for word in words:
            assert message not in told(word), word


def test_keys_that_the_recipe_itself_sets_are_named_by_its_own(tmp_path: Path) -> None:
    recipe = load_recipe("alfworld/methods_full", ["stages=[il, dpo]", "training.critic.config=[act=critic]"])
    stages = training(recipe, tmp_path)
    il, dpo = (recipe_words(recipe, stages[name]) for name in ("il", "dpo"))
    assert il("data.max_length=9") == "max_model_len=9"
    assert dpo("data.max_length=9") == "training.dpo.overrides.data.max_length=9", "this stage has its own"
    assert il("trainer.default_local_dir") == "--out"
    assert (il("+act/device=cpu_sft"), il("+act/device=gpu_sdpa")) == ("device=cpu", "device=gpu_sdpa")
    words = recipe_words(recipe)
    assert words("data.act.episode.mode=stepwise") == "evaluate.mode=stepwise"
    date = Problem("", "Set `++data.apply_chat_template_kwargs={date_string:26 Jul 2024}`.").fix(words)
    assert date == "Set 'chat_template_kwargs={date_string:26 Jul 2024}'."
    fixed = load_recipe("alfworld/quickstart", ["chat_template_kwargs={date_string:26 Jul 2024}"])
    assert fixed.chat_template_kwargs == {"date_string": "26 Jul 2024"}


def test_dpo_of_a_large_model_on_one_gpu_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("verl_act.chain.check.local_devices", lambda: Devices("cuda", 1, 85_000_000_000))
    monkeypatch.setattr("verl_act.preflight.vllm_is_cpu_build", lambda: False)
    qwen3_8b_config().save_pretrained(tmp_path / "model")
    change = "training.dpo.overrides.trainer.n_gpus_per_node=1"
    recipe = load_recipe("alfworld/methods_full", ["stages=[dpo]", f"model={tmp_path / 'model'}", change])
    stage = training(recipe, tmp_path)["dpo"]
    with pytest.raises(ConfigError, match=r"training needs .*reference.*more or larger devices"):
        configuration(recipe, stage)


def test_the_check_wants_a_tokenizer_with_a_chat_template(
    policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare, untold = tmp_path / "bare", tmp_path / "untold"
    for folder, model_type in ((bare, "unheard_of"), (untold, "qwen3")):
        folder.mkdir()
        (folder / "config.json").write_text(f'{{"model_type": "{model_type}"}}')
    tokenizer = make_tokenizer(["go"])
    tokenizer.chat_template = None
    tokenizer.save_pretrained(untold)
    for folder, remedy in ((bare, "Copy tokenizer.json"), (untold, "Add chat_template.jinja")):
        with pytest.raises(ConfigError, match="model"):
            check_run(load_recipe("alfworld/quickstart", [f"model={folder}"]), RunFolder(tmp_path / "out"), [0])
        assert remedy in capsys.readouterr().out

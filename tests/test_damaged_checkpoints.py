"""A run resumes from its newest whole checkpoint, whatever the files of newer ones look like."""

import json
import shutil
import struct
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import verl
from safetensors.numpy import save_file

from verl_act.upstream_gaps import damaged_checkpoints as checkpoints
from verl_act.upstream_gaps.damaged_checkpoints import (
    TRACKER,
    checkpoints_in,
    exported_models,
    fault_of,
    resume_from_complete,
    tidy,
)

WORLD = 2


def archive(path: Path) -> None:
    """As `torch.save` writes it."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(f"{path.stem}/data.pkl", bytes(2000))


def model_folder(folder: Path, export: bool = True) -> None:
    (folder / "huggingface").mkdir(parents=True)
    for rank in range(WORLD):
        for name in ("model", "optim", "extra_state"):
            archive(folder / f"{name}_world_size_{WORLD}_rank_{rank}.pt")
    (folder / "fsdp_config.json").write_text(json.dumps({"FSDP_version": 2, "world_size": WORLD}))
    (folder / "huggingface" / "config.json").write_text("{}")
    if export:
        save_file({"weights": np.zeros(1000)}, folder / "huggingface" / "model.safetensors")


def rl_checkpoint(folder: Path, step: int) -> Path:
    """With a value model."""
    checkpoint = folder / f"global_step_{step}"
    model_folder(checkpoint / "actor")
    model_folder(checkpoint / "critic", export=False)
    archive(checkpoint / "data.pt")
    (folder / TRACKER).write_text(str(step))
    return checkpoint


def sft_checkpoint(folder: Path, step: int) -> Path:
    checkpoint = folder / f"global_step_{step}"
    model_folder(checkpoint)
    archive(checkpoint / "data_0.pt")
    (folder / TRACKER).write_text(str(step))
    return checkpoint


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def zeroed(path: Path) -> None:
    """As a file is after the machine has lost its power."""
    path.write_bytes(bytes(path.stat().st_size))


@pytest.mark.parametrize("make", [rl_checkpoint, sft_checkpoint])
@pytest.mark.parametrize("spoil", [Path.unlink, cut, zeroed])
def test_every_file_that_is_needed_is_missed(
    make: Callable[[Path, int], Path], spoil: Callable[[Path], object], tmp_path: Path
) -> None:
    make(tmp_path, 10)
    older = tmp_path / "global_step_10"
    files = [path.relative_to(older) for path in sorted(older.rglob("*")) if path.is_file()]
    files = [path for path in files if path.parts[:2] != ("critic", "huggingface")]
    assert len(files) == (10 if make is sft_checkpoint else 17)
    for file in files:
        newest = make(tmp_path, 20)
        assert not fault_of(newest) and resume_from_complete(tmp_path) == newest
        spoil(newest / file)
        assert file.name in fault_of(newest) or str(file.parent) in fault_of(newest)
        assert resume_from_complete(tmp_path) == tmp_path / "global_step_10"
        assert (tmp_path / TRACKER).read_text() == "10"
        shutil.rmtree(newest)


@pytest.mark.parametrize("tracker", [None, "", "10", "30", "x"])
def test_a_tracker_that_is_behind_or_damaged_is_set_right(tracker: str | None, tmp_path: Path) -> None:
    """verl writes it last, and not at once."""
    rl_checkpoint(tmp_path, 9)
    rl_checkpoint(tmp_path, 10)
    (tmp_path / TRACKER).unlink() if tracker is None else (tmp_path / TRACKER).write_text(tracker)
    assert resume_from_complete(tmp_path) == tmp_path / "global_step_10"
    assert (tmp_path / TRACKER).read_text() == "10"


def test_where_none_is_whole_a_run_begins_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert resume_from_complete(tmp_path) is None
    (rl_checkpoint(tmp_path, 5) / "data.pt").unlink()
    (tmp_path / "global_step_6" / "actor").mkdir(parents=True)
    assert resume_from_complete(tmp_path) is None
    assert not (tmp_path / TRACKER).exists()
    assert [str(tmp_path / f"global_step_{step}") in caplog.text for step in (5, 6)] == [True, True]


def test_what_a_run_does_not_save_is_not_missed(tmp_path: Path) -> None:
    checkpoint = sft_checkpoint(tmp_path, 1)
    for path in [*checkpoint.glob("optim*"), checkpoint / "huggingface" / "model.safetensors"]:
        path.unlink()
    assert fault_of(checkpoint) and fault_of(checkpoint, ["model", "optimizer", "extra"])
    assert not fault_of(checkpoint, ["model", "extra"])


def test_a_model_in_several_files_is_whole_with_all_of_them(tmp_path: Path) -> None:
    checkpoint = sft_checkpoint(tmp_path, 1)
    export = checkpoint / "huggingface"
    index = {"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}
    (export / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "model-2.safetensors" in fault_of(checkpoint)
    (export / "model-2.safetensors").write_bytes(struct.pack("<Q", 2) + b"{}")
    assert not fault_of(checkpoint)


def megatron_checkpoint(folder: Path, step: int) -> Path:
    actor = folder / f"global_step_{step}" / "actor"
    export = actor / "model" / "huggingface"
    for made in (export, actor / "optimizer" / "dist_ckpt"):
        made.mkdir(parents=True)
    (export / "config.json").write_text("{}")
    save_file({"weights": np.zeros(10)}, export / "model.safetensors")
    archive(actor.parent / "data.pt")
    return export


def test_megatrons_folders_are_named_as_here() -> None:
    source = (Path(verl.__file__).parent / "utils" / "megatron_utils.py").read_text()  # it imports Megatron
    names = {"_MODEL_SUBDIR": "model", "_OPTIMIZER_SUBDIR": "optimizer", "_HUGGINGFACE_SUBDIR": "huggingface"}
    assert all(f'{name} = "{folder}"' in source for name, folder in names.items())


def test_checkpoints_of_megatron_are_whole_once_the_tracker_names_them(tmp_path: Path) -> None:
    for step in (1, 2):
        megatron_checkpoint(tmp_path, step)
    (tmp_path / TRACKER).write_text("1")
    assert resume_from_complete(tmp_path) == tmp_path / "global_step_1"


def test_exported_models_are_found_wherever_a_trainer_leaves_them(tmp_path: Path) -> None:
    rl_checkpoint(tmp_path, 2)
    sft_checkpoint(tmp_path, 3)
    export = megatron_checkpoint(tmp_path, 10)
    found = [tmp_path / "global_step_2/actor/huggingface", tmp_path / "global_step_3/huggingface", export]
    assert exported_models(tmp_path) == found
    assert not exported_models(tmp_path / "global_step_2")


def test_damaged_ones_are_moved_aside_and_old_ones_deleted(tmp_path: Path) -> None:
    for step in (2, 4, 10, 12, 14):
        rl_checkpoint(tmp_path, step)
    cut(tmp_path / "global_step_14" / "data.pt")
    cut(tmp_path / "global_step_10" / "data.pt")
    assert tidy(tmp_path, keep=2) == tmp_path / "global_step_12"
    assert [path.name for path in checkpoints_in(tmp_path)] == ["global_step_4", "global_step_12"]
    assert {path.name for path in tmp_path.glob("damaged*")} == {"damaged_step_10", "damaged_step_14"}
    rl_checkpoint(tmp_path, 14)
    assert tidy(tmp_path) == tmp_path / "global_step_14"
    assert not [*tmp_path.glob("damaged*")] and len(checkpoints_in(tmp_path)) == 3


SAVING = """
import sys, pathlib, torch
folder = pathlib.Path(sys.argv[1])
for step in range(1, 1000):
    part = folder / f"global_step_{step}"
    (part / "huggingface").mkdir(parents=True)
    for name in ("model", "optim", "extra_state"):
        torch.save({"weights": torch.ones(200_000)}, part / f"{name}_world_size_1_rank_0.pt")
    (part / "huggingface" / "config.json").write_text("{}")
    (part / "fsdp_config.json").write_text('{"world_size": 1}')
    torch.save({}, part / "data_0.pt")
    (folder / "latest_checkpointed_iteration.txt").write_text(str(step))
    print(step, flush=True)
"""


def test_a_kill_while_saving_leaves_one_to_resume_from(tmp_path: Path) -> None:
    """Real files of torch, and a real kill at ten moments."""
    import torch

    with subprocess.Popen([sys.executable, "-c", SAVING, tmp_path], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) == 3:
                break
        time.sleep(0.011)
        process.kill()
    contents = ["model", "optimizer", "extra"]
    whole = tidy(tmp_path, contents)
    assert whole is not None and checkpoints.step_of(whole) >= 3
    assert (tmp_path / TRACKER).read_text() == str(checkpoints.step_of(whole))
    for path in whole.glob("*.pt"):
        torch.load(path, weights_only=False)


def with_method(verls: type, name: str) -> type[SimpleNamespace]:
    """A class whose one method is verl's; its attributes are given."""
    return type(verls.__name__, (SimpleNamespace,), {name: verls.__dict__[name]})


def test_verl_asks_for_the_newest_whole_one(tmp_path: Path) -> None:
    """Without the chain too: verl's own methods, of both trainers."""
    from verl.trainer.ppo.v1 import trainer_base
    from verl.utils.checkpoint import checkpoint_handler

    import verl_act.plugin  # noqa: F401

    for folder, make in ((tmp_path / "rl", rl_checkpoint), (tmp_path / "sft", sft_checkpoint)):
        folder.mkdir()
        make(folder, 10)
        (make(folder, 20) / "data.pt").unlink(missing_ok=True)
        (folder / "global_step_20" / "data_0.pt").unlink(missing_ok=True)
    loaded: list[Path] = []
    saved = {"load_contents": ["model", "optimizer", "extra"], "save_contents": ["model", "optimizer", "extra"]}
    actor = SimpleNamespace(checkpoint=saved)
    own = SimpleNamespace(resume_mode="auto", default_local_dir=str(tmp_path / "rl"), del_local_ckpt_after_load=False)

    class Stop(Exception):
        pass

    def load_checkpoint(local_path: str, **_: object) -> None:
        loaded.append(Path(local_path))
        raise Stop

    trainer = with_method(trainer_base.PPOTrainer, "_load_checkpoint")(
        config=SimpleNamespace(trainer=own, actor_rollout_ref=SimpleNamespace(actor=actor)),
        actor_rollout_wg=SimpleNamespace(load_checkpoint=load_checkpoint),
    )
    with pytest.raises(Stop):
        trainer._load_checkpoint()
    assert loaded == [tmp_path / "rl" / "global_step_10" / "actor"]
    handler = with_method(checkpoint_handler.CheckpointHandler, "_find_latest_checkpoint")(
        rank=0,
        mode=checkpoint_handler.OrchestrationMode.RAY,
        default_local_dir=str(tmp_path / "sft"),
        engine=SimpleNamespace(checkpoint_config=saved),
    )
    found = handler._find_latest_checkpoint()
    assert found == str(tmp_path / "sft" / "global_step_10")

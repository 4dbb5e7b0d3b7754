"""`verl-act dev export-recipe`: the package, its configurations and run scripts as a folder of verl-recipe.

Such a folder is used from a checkout, without installation: the run scripts put it on PYTHONPATH, verl loads the plugin
by VERL_USE_EXTERNAL_MODULES, and each configuration names its own search path. The embedded models are left out, since
verl-recipe holds no weights.
"""

from __future__ import annotations

import shutil
from importlib.metadata import requires
from pathlib import Path

from packaging.requirements import Requirement

from verl_act import __version__
from verl_act.errors import ConfigError
from verl_act.extras import needs_extra
from verl_act.output_folder import atomic_folder, content, reserved

with needs_extra("report"):
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

PACKAGE = Path(__file__).resolve().parent.parent
TEMPLATES = Path(__file__).with_name("templates")
VERL = "0.9.1"
"""The verl release that the tests run against."""
STAGES = {
    "critic": "critic stage: GRPO on choices between the expert's action and an alternative",
    "action": "action stage: GRPO on actions, from the critic stage's model",
    "action_ppo": "action stage with PPO and a value model",
}
"""Hydra group below `act` -> description."""
_LEFT_OUT = shutil.ignore_patterns("__pycache__", "assets", "*.partial")
_EXECUTABLE = 0o755


def export_recipe(out: Path) -> Path:
    """Write the folder `out`, replacing an earlier export. Raises `ConfigError` if `out` holds anything else."""
    with reserved(out, replace_any=True), atomic_folder(out, replace_any=True) as folder:
        if content(out) and not (out / "REQUIRED_VERL.txt").is_file():
            raise ConfigError(
                f"{out}: holds other files (no REQUIRED_VERL.txt). Give a new folder, such as recipe/act."
            )
        shutil.copytree(PACKAGE, folder / "verl_act", ignore=_LEFT_OUT)
        _render(folder, "README.md", stages=STAGES)
        _render(folder, "REQUIRED_VERL.txt")
        (folder / "requirements.txt").write_text("".join(f"{line}\n" for line in _requirements()), encoding="utf-8")
        for stage, title in STAGES.items():
            _render(folder, "config.yaml", f"config/{stage}.yaml", stage=stage, title=title)
            _render(folder, "run.sh", f"run_{stage}.sh", stage=stage, title=title).chmod(_EXECUTABLE)
        _render(folder, "ruff.toml")
    return out


def _render(folder: Path, template: str, name: str | None = None, **values: object) -> Path:
    """Render `templates/<template>.jinja` to the file `name` (default: the template's) in `folder`."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, keep_trailing_newline=True, trim_blocks=True
    )
    path = folder / (name or template)
    path.parent.mkdir(exist_ok=True)
    text = environment.get_template(f"{template}.jinja").render(verl=VERL, version=__version__, **values)
    path.write_text(text, encoding="utf-8")
    return path


def _requirements() -> list[str]:
    """The requirements of this package except verl, sorted."""
    requirements = (Requirement(text) for text in requires("verl-act") or ())
    return sorted(
        str(requirement) for requirement in requirements if not requirement.marker and requirement.name != "verl"
    )

"""An environment of the tests, installed as somebody's package would be, with Ray workers that find it too."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import ray


def install(module: ModuleType, site: Path) -> None:
    """Write the metadata of a package that offers `module.SPEC`; effective with `site` on the Python path."""
    metadata = site / f"{module.NAME}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module.NAME}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[verl_act.envs]\n{module.NAME} = {module.__name__}:SPEC\n")


@contextmanager
def ray_with(module: ModuleType, site: Path) -> Iterator[None]:
    """A Ray of two CPUs whose workers find `module` (with `NAME` and `SPEC`) as an environment installed in `site`."""
    install(module, site)
    paths = [str(site), str(Path(__file__).parent)]
    sys.path[:0] = paths
    environment = {"PYTHONPATH": os.pathsep.join([*paths, os.getcwd()])}
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env={"env_vars": environment})
    try:
        yield
    finally:
        ray.shutdown()
        for path in paths:
            sys.path.remove(path)

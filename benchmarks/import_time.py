"""What the plugin adds to `import verl`, in processes that take turns.

    python benchmarks/import_time.py [ROUNDS]

Each round imports verl without the plugin, with it, and with it where no CPU platform is wanted (as on a GPU machine).
Counted is the processor time of the whole process, which other programs disturb less than the clock. Prints the
medians and writes `benchmarks/results/import_time.json`.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from statistics import median

RESULTS = Path(__file__).parent / "results" / "import_time.json"
WAYS = {
    "without": {"VERL_USE_EXTERNAL_PLUGINS": "none"},
    "plugin": {},
    "plugin, no CPU platform": {"VERL_PLATFORM": "nvidia"},
}
IMPORTS = {"verl": "import verl", "verl.trainer.main_ppo": "import verl.trainer.main_ppo"}


def cpu_seconds(code: str, environment: dict[str, str]) -> float:
    """User and system time of one process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-c", code]
    subprocess.run(command, env={**os.environ, **environment}, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def main(rounds: int) -> None:
    result = {}
    for name, code in IMPORTS.items():
        seconds: dict[str, list[float]] = {way: [] for way in WAYS}
        for _ in range(rounds):
            for way, environment in WAYS.items():
                seconds[way].append(cpu_seconds(code, environment))
        medians = {way: round(median(times), 3) for way, times in seconds.items()}
        # The ratio of each round by itself: a slow minute slows all three.
        ratios = {
            way: round(median(time / base for time, base in zip(seconds[way], seconds["without"], strict=True)), 4)
            for way in WAYS
        }
        result[name] = {"seconds": medians, "ratio": ratios}
        for way in WAYS:
            print(f"import {name}, {way}: {medians[way]:.2f} s of CPU, ratio {ratios[way]:.3f}")
    RESULTS.write_text(json.dumps({"rounds": rounds, **result}, indent=2) + "\n")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 7)

"""Our WebShop engine with and without its index and its caches: episodes on the embedded catalogue, and large
catalogues.

    python benchmarks/webshop_engine.py [--episodes 100] [--products 1000,10000,50000,1181436]

Without them it scans all texts for the words of a search, and decodes every product that a page shows. WebShop's own
engine, which needs Java, spaCy and files that no package index has, is not compared. Seconds are of
processor time, in one process. Descriptions in the large catalogues are as long as the official ones (about 1,000
characters); the official full catalogue has 1,181,436 products. Prints tables and writes `results/webshop_engine.json`
beside this file.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from time import process_time
from typing import Any

from verl_act.envs.base import StepResult
from verl_act.envs.webshop import catalogue as catalogues
from verl_act.envs.webshop.analysis import index_terms
from verl_act.envs.webshop.catalogue import Catalogue, load_catalogue
from verl_act.envs.webshop.environment import WebShopEnvironment
from verl_act.envs.webshop.files import PRODUCT_FILE
from verl_act.envs.webshop.goals import list_goals, list_tasks
from verl_act.envs.webshop.instruction import likely_search
from verl_act.envs.webshop.search import MOST_HITS

RESULT = Path(__file__).parent / "results" / "webshop_engine.json"
MOST_IN_MEMORY = 100_000


def scan(catalogue: Catalogue, text: str) -> tuple[int, ...]:
    """The plain search: the products whose texts hold most of the words."""
    words = index_terms(text)
    counts = []
    for row in range(len(catalogue)):
        found = catalogue._product(row).indexed_text()
        counts.append((-sum(word in found for word in words), row))
    return tuple(row for count, row in sorted(counts)[:MOST_HITS] if count)


def walk(environment: WebShopEnvironment, episodes: int) -> tuple[int, float]:
    """Steps and seconds of random episodes; one step in four searches, as agents do."""
    tasks = random.Random(1).sample(list_tasks("train"), episodes)
    rng, steps, started = random.Random(2), 0, process_time()
    for task in tasks:
        first = environment.reset(task)
        shown: StepResult | None = None
        while shown is None or not shown.done:
            offered = first.admissible_actions if shown is None else shown.admissible_actions
            searches = shown is None or rng.random() < 0.25
            words = likely_search(first.goal).split()
            text = " ".join(rng.sample(words, rng.randint(1, len(words))))
            shown = environment.step(f"search[{text}]" if searches else rng.choice(offered))
            steps += 1
    return steps, process_time() - started


def compare_engines(episodes: int) -> dict[str, float]:
    """Steps a second of both engines. The plain one plays a tenth of the episodes."""
    environment = WebShopEnvironment()
    walk(environment, 1)
    steps, seconds = walk(environment, episodes)
    shared = load_catalogue()
    kept = shared.product, shared.search
    shared.product = shared._product  # type: ignore[assignment]
    shared.search = lambda text: scan(shared, text)  # type: ignore[assignment]
    plain_steps, plain_seconds = walk(environment, max(1, episodes // 10))
    shared.product, shared.search = kept
    ours, plain = steps / seconds, plain_steps / plain_seconds
    return {"steps_per_second": round(ours), "plain_steps_per_second": round(plain, 1), "ratio": round(ours / plain, 1)}


def memory() -> dict[str, int]:
    """MB of this process: its own, shared with files, and the most it ever had."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    fields = {"own_mb": "RssAnon", "mapped_mb": "RssFile", "peak_mb": "VmHWM"}
    return {name: int(lines[field].split()[0]) >> 10 for name, field in fields.items()}


def start(data: str, cached: bool) -> dict[str, Any]:
    """In a process of its own: what starting on `data` costs, and a search there."""
    catalogues.CACHED_FROM = 0 if cached else sys.maxsize
    before, started = memory()["own_mb"], process_time()
    catalogue = load_catalogue(data)
    goals = list_goals(catalogue)
    seconds = process_time() - started
    used = memory()
    searches = [likely_search(goal.instruction) for goal in goals[:50]]
    times = []
    for text in searches:
        started = process_time()
        catalogue.search(text)
        times.append(process_time() - started)
    started = process_time()
    scan(catalogue, searches[0])
    scanned = process_time() - started
    search_ms = 1000 * statistics.median(times)
    return {
        "seconds": round(seconds, 2),
        "own_mb": used["own_mb"] - before,
        "peak_mb": used["peak_mb"],
        "search_ms": round(search_ms, 2),
        "scan_ms": round(1000 * scanned),
        "ratio": round(1000 * scanned / search_ms),
    }


def lengthen(folder: Path) -> None:
    """Give every product a description of eight sentences of others, as long as official ones are."""
    path, rng = folder / PRODUCT_FILE, random.Random(0)
    with path.open() as short:
        texts = [json.loads(line.rstrip(",\n"))["full_description"] for line in short if line[0] == "{"]
    longer = path.with_suffix(".longer")
    with path.open() as short, longer.open("w") as long:
        for line in short:
            if line[0] == "{":
                product = json.loads(line.rstrip(",\n"))
                product["full_description"] = " ".join(rng.sample(texts, 8))
                line = json.dumps(product) + line[line.rindex("}") + 1 :]
            long.write(line)
    longer.replace(path)


def measure_size(products: int, folder: Path) -> dict[str, Any]:
    """Starting without the cache (which a large catalogue never does), making it, and starting with it; each in a
    fresh process, and so is what takes memory to make the data.
    """
    data = folder / str(products)
    numbers = ["--products", str(products), "--instructions", "1"]
    subprocess.run([sys.executable, "-m", "verl_act", "dev", "catalogue", "--out", str(data), *numbers], check=True)
    lengthen(data)
    environment = {**os.environ, "VERL_ACT_CACHE": str(folder / "cache")}
    figures: dict[str, Any] = {"file_mb": (data / PRODUCT_FILE).stat().st_size >> 20}
    for name, mode in (("without_cache", "memory"), ("preparing", "cache"), ("from_cache", "cache")):
        if name == "without_cache" and products > MOST_IN_MEMORY:
            continue
        command = [sys.executable, __file__, "--start", str(data), "--mode", mode]
        answer = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
        figures[name] = json.loads(answer.splitlines()[-1])
    figures["cache_mb"] = sum(file.stat().st_size for file in (folder / "cache").rglob("*") if file.is_file()) >> 20
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--products", default="1000,10000,50000")
    parser.add_argument("--start", help=argparse.SUPPRESS)
    parser.add_argument("--mode", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.start:
        print(json.dumps(start(options.start, options.mode == "cache")))
        return
    engines = compare_engines(options.episodes)
    print(f"embedded catalogue: {engines['steps_per_second']} steps/s, {engines['ratio']} times the plain engine's")
    sizes = {}
    print(f"{'products':>9} {'start':>14} {'seconds':>8} {'own MB':>7} {'peak MB':>8} {'search ms':>10} {'scan':>8}")
    for products in map(int, options.products.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            sizes[products] = measure_size(products, Path(folder))
        for name in [start for start in ("without_cache", "preparing", "from_cache") if start in sizes[products]]:
            found = sizes[products][name]
            figures = f"{found['seconds']:8.2f} {found['own_mb']:7d} {found['peak_mb']:8d} {found['search_ms']:10.2f}"
            print(f"{products:9d} {name:>14} {figures} {found['ratio']:7d}x")
        print(f"{products:9d} product file {sizes[products]['file_mb']} MB, cache {sizes[products]['cache_mb']} MB")
    machine = {"cores": os.cpu_count(), "python": platform.python_version(), "load_average": os.getloadavg()[0]}
    tools = {name: version(name) for name in ("rapidfuzz", "regex", "scipy", "numpy")}
    RESULT.parent.mkdir(exist_ok=True)
    result = {"machine": machine, "tools": tools, "embedded": engines, "sizes": sizes}
    RESULT.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()

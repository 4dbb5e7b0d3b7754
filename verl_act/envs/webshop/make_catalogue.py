"""Generate a WebShop catalogue with goals, in WebShop's file format: for use without the official files, or with
another size or seed than the embedded catalogue. The same arguments give the same bytes.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from verl_act.envs.webshop.embedded import INSTRUCTIONS, PRODUCTS, SEED, embedded_records
from verl_act.envs.webshop.files import ATTRIBUTE_FILE, HUMAN_FILE, PRODUCT_FILE
from verl_act.envs.webshop.goals import SPLITS, split_bounds
from verl_act.errors import OptionError
from verl_act.manifest import Manifest, make_manifest, write_manifest
from verl_act.options import Positive, Seed, check_options
from verl_act.output_folder import atomic_folder, writes_folder


@writes_folder("make_catalogue")
def make_catalogue(
    out: str | os.PathLike[str], *, products: int = PRODUCTS, instructions: int = INSTRUCTIONS, seed: int = SEED
) -> Manifest:
    """Write `products` products with `instructions` goals each to `out`, with a manifest; return the manifest.

    The defaults give the embedded catalogue. Raises `ConfigError` for counts below 1, or for fewer than three goals.
    """
    _check(products=products, instructions=instructions, seed=seed)
    started = time.monotonic()
    records = embedded_records(products, instructions, seed)
    with atomic_folder(out) as folder:
        _write_lines(folder / PRODUCT_FILE, "[]", map(_json, records.products))
        _write_lines(
            folder / ATTRIBUTE_FILE, "{}", (f"{_json(asin)}: {_json(of)}" for asin, of in records.attributes.items())
        )
        _write_lines(folder / HUMAN_FILE, "{}", (f"{_json(asin)}: {_json(of)}" for asin, of in records.human.items()))
        manifest = make_manifest(
            "make_catalogue",
            settings={"products": products, "instructions": instructions},
            counts={
                "products": products,
                "by_category": dict(sorted(Counter(product["category"] for product in records.products).items())),
                "goals": {split: len(split_bounds(split, products * instructions)) for split in SPLITS},
            },
            seed=seed,
            seconds=time.monotonic() - started,
        )
        write_manifest(folder, manifest)
    return manifest


def _check(*, products: Positive, instructions: Positive, seed: Seed) -> None:
    check_options(_check, {"products": products, "instructions": instructions, "seed": seed})
    if products * instructions < 3:
        raise OptionError(
            "products", f"is {products} with {instructions} goals each; each of three splits needs a goal."
        )


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _write_lines(path: Path, brackets: str, lines: Iterable[str]) -> None:
    """Write one entry per line."""
    with path.open("w", encoding="utf-8") as file:
        file.write(brackets[0])
        for index, line in enumerate(lines):
            file.write(f",\n{line}" if index else f"\n{line}")
        file.write(f"\n{brackets[1]}\n")

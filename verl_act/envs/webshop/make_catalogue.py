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

from verl_act.envs.webshop.embedded import embedded_records
from verl_act.envs.webshop.files import ATTRIBUTE_FILE, HUMAN_FILE, PRODUCT_FILE
from verl_act.envs.webshop.goals import SPLITS, split_bounds
from verl_act.errors import OptionError
from verl_act.manifest import Manifest, make_manifest, write_manifest
from verl_act.output_folder import atomic_folder, writes_folder
from verl_act.settings.data import CatalogueSettings


@writes_folder("make_catalogue")
def make_catalogue(settings: CatalogueSettings, out: str | os.PathLike[str]) -> Manifest:
    """Write products with their goals to `out`, with a manifest; return the manifest.

    The defaults give the embedded catalogue. Raises `ConfigError` for fewer than three goals.
    """
    check_settings(settings)
    products, instructions = settings.products, settings.instructions
    started = time.monotonic()
    records = embedded_records(settings)
    with atomic_folder(out) as folder:
        _write_lines(folder / PRODUCT_FILE, "[]", map(_json, records.products))
        for name, entries in ((ATTRIBUTE_FILE, records.attributes), (HUMAN_FILE, records.human)):
            _write_lines(folder / name, "{}", (f"{_json(asin)}: {_json(entry)}" for asin, entry in entries.items()))
        manifest = make_manifest(
            "make_catalogue",
            settings=settings.recorded(),
            counts={
                "products": products,
                "by_category": dict(sorted(Counter(product["category"] for product in records.products).items())),
                "goals": {split: len(split_bounds(split, products * instructions)) for split in SPLITS},
            },
            seed=settings.seed,
            seconds=time.monotonic() - started,
        )
        write_manifest(folder, manifest)
    return manifest


def check_settings(settings: CatalogueSettings) -> None:
    """Raise `ConfigError` if a split would have no goal."""
    if settings.products * settings.instructions < 3:
        raise OptionError(
            "products",
            f"is {settings.products} with {settings.instructions} goals each; each of three splits needs a goal.",
        )


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _write_lines(path: Path, brackets: str, lines: Iterable[str]) -> None:
    """Write one entry per line."""
    path.write_text("\n".join((brackets[0], ",\n".join(lines), brackets[1], "")), encoding="utf-8")

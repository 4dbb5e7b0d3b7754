"""Write the report of one or several runs: an HTML page, and the same metrics as Markdown and JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from verl_act.errors import ConfigError
from verl_act.output_folder import replace_file, reserved_file
from verl_act.report.content import Content, content
from verl_act.report.page import html, markdown
from verl_act.report.read import read_runs

EXAMPLES = 40
"""Default number of answers of each kind on the page."""


def write_report(
    out: str | PathLike[str], folders: Sequence[str | PathLike[str]], most_examples: int = EXAMPLES
) -> list[Path]:
    """Write `out` (HTML) and next to it the same name with `.md` and `.json`; returns the three paths.

    `folders` are output folders of `chain` (finished or not), `methods` or `evaluate`. All models are tested against
    the first model of the first folder. The same folders give the same bytes. Raises `DataError` for a damaged file in
    a folder, `ConfigError` for an invalid `out` or `most_examples`.
    """
    page = Path(out)
    if page.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"{page}: the page is HTML; give a name that ends in .html.")
    if most_examples < 0:
        raise ConfigError(f"{most_examples} examples cannot be shown; give 0 for none.")
    if not folders:
        raise ConfigError("no run is named; give the output folder of a chain, or several.")
    with reserved_file(page):
        whole = content(read_runs(folders), most_examples)
        files = {
            page: html(whole),
            page.with_suffix(".md"): markdown(whole),
            page.with_suffix(".json"): _json(whole),
        }
        for path, text in files.items():
            replace_file(path, text)
    return list(files)


def _json(whole: Content) -> str:
    """Strict JSON: values that are not finite, such as those of a diverged training, become null."""
    return json.dumps(_finite(whole.as_json()), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(entry) for key, entry in value.items()}
    return [_finite(entry) for entry in value] if isinstance(value, list | tuple) else value

"""The report of a run, or of several side by side: one page, and the same numbers as Markdown and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from os import PathLike
from pathlib import Path

from verl_act.errors import ConfigError
from verl_act.output_folder import replace_file, reserved_file
from verl_act.report.content import content
from verl_act.report.page import html, markdown
from verl_act.report.read import read_runs

EXAMPLES = 40
"""Answers of each kind shown of each model, unless asked otherwise."""


def write_report(
    out: str | PathLike[str], folders: Sequence[str | PathLike[str]], most_examples: int = EXAMPLES
) -> list[Path]:
    """Write `out` (HTML) and beside it the same name as `.md` and `.json`; returns the three paths.

    `folders` are output folders of `chain`, finished or not, or of `evaluate`; the first model of the first is what
    the others are tested against. The same folders give the same bytes. Raises `DataError` on a damaged file in them,
    `ConfigError` where `out` or `most_examples` makes no sense.
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
            page.with_suffix(".json"): json.dumps(whole.as_json(), indent=2, ensure_ascii=False, allow_nan=False)
            + "\n",
        }
        for path, text in files.items():
            replace_file(path, text)
    return list(files)

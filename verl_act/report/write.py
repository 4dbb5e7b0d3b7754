"""The report of a run, or of several side by side: one page, and the same numbers as Markdown and as JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from os import PathLike
from pathlib import Path

from verl_act.errors import ConfigError, DataError
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
    whole = content(read_runs(folders), most_examples)
    files = {
        page: html(whole),
        page.with_suffix(".md"): markdown(whole),
        page.with_suffix(".json"): json.dumps(whole.as_json(), indent=2, ensure_ascii=False, allow_nan=False) + "\n",
    }
    for path, text in files.items():
        _write(path, text)
    return list(files)


def _write(path: Path, text: str) -> None:
    """Aside first and then renamed. A lone surrogate, which a damaged reply may hold, becomes a question mark."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(text.encode("utf-8", errors="replace"))
        os.replace(partial, path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise DataError(f"{path}: could not be written: {error}. Free space or choose another folder.") from error

"""Write the report of one or several runs: an HTML page, and the same metrics as Markdown and JSON."""

from __future__ import annotations

import json
from os import PathLike
from pathlib import Path

from verl_act.errors import OptionError
from verl_act.output_folder import replace_file, reserved_file
from verl_act.report.content import Content, content
from verl_act.report.page import html, markdown
from verl_act.report.read import read_runs
from verl_act.settings.evaluation import ReportSettings


def write_report(settings: ReportSettings, out: str | PathLike[str]) -> list[Path]:
    """Write `out` (HTML) and next to it the same name with `.md` and `.json`; returns the three paths.

    All models are tested against the first model of the first run. The same folders give the same bytes. Raises
    `DataError` for a damaged file in a folder, `ConfigError` if `out` is not a page.
    """
    page = Path(out)
    if page.suffix.lower() not in (".html", ".htm"):
        raise OptionError("out", f"is {page}; the page is HTML, so give a name that ends in .html.")
    with reserved_file(page):
        shown = content(read_runs(settings.runs), settings.examples)
        files = {
            page: html(shown),
            page.with_suffix(".md"): markdown(shown),
            page.with_suffix(".json"): _json(shown),
        }
        for path, text in files.items():
            replace_file(path, text)
    return list(files)


def _json(shown: Content) -> str:
    """Strict JSON: values that are not finite, such as those of a diverged training, become null."""
    finite = json.loads(json.dumps(shown.as_json()), parse_constant=lambda _: None)
    return json.dumps(finite, indent=2, ensure_ascii=False) + "\n"

"""docs/gaps.md lists every gap that the code works around, and nothing that is gone."""

from __future__ import annotations

import re
from pathlib import Path

from test_upstream_gaps_cpu import GAPS

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = (ROOT / "docs" / "gaps.md").read_text()
PATH = re.compile(r"`((?:verl_act|tests)/[\w/]+\.py)`")


def table_rows() -> dict[str, list[str]]:
    """Our file -> the cells of its row."""
    rows = (line.strip("| ").split(" | ") for line in DOCUMENT.splitlines() if line.startswith("| `verl_act/"))
    return {PATH.match(cells[0])[1]: cells for cells in rows if PATH.match(cells[0])}  # type: ignore[index]


def gap_files() -> set[str]:
    """The files that say so themselves: `Gap:` at the head of a module or in a comment, and the platform's."""
    sources = {path: path.read_text() for path in (ROOT / "verl_act").rglob("*.py") if not path.is_symlink()}
    found = {path for path, text in sources.items() if re.search(r'^"""Gap: |# Gap: ', text)}
    found |= set((ROOT / "verl_act" / "upstream_gaps" / "cpu").glob("*.py"))
    return {path.relative_to(ROOT).as_posix() for path in found}


def test_every_gap_is_listed() -> None:
    assert gap_files() <= table_rows().keys()


def test_every_file_that_is_named_exists() -> None:
    missing = [name for name in PATH.findall(DOCUMENT) if not (ROOT / name).is_file()]
    assert not missing


def test_the_tests_named_are_those_of_the_platform_gaps() -> None:
    rows = table_rows()
    for gap, (file, _) in GAPS.items():
        cells = rows[f"verl_act/upstream_gaps/{file.split()[0]}"]
        assert f"`{gap}`" in cells[3], f"docs/gaps.md names another test for {file}"
    assert all(cells[2] and cells[-1] for cells in rows.values())

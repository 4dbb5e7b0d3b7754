"""Cross-cutting: tables of results in documents are those of the files in `benchmarks/results`."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TABLE = re.compile(r"^<!-- table: (\w+) (\w+) (.*) -->\n\n?((?:\|.*\n)+)", re.M)
DOCUMENTS = [
    ROOT / "README.md",
    *ROOT.glob("docs/*.md"),
    *ROOT.glob("benchmarks/*.md"),
    *ROOT.glob("recipes/*/README.md"),
]
TABLES = [
    pytest.param(*match.groups(), id=f"{path.relative_to(ROOT)} {match[1]} {match[2]}")
    for path in DOCUMENTS
    for match in TABLE.finditer(path.read_text())
]


@pytest.mark.parametrize(("kind", "name", "metrics", "rows"), TABLES)
def test_a_table_is_that_of_its_results(kind: str, name: str, metrics: str, rows: str) -> None:
    module = "quickstart" if kind == "quickstart" else "methods_table"
    spec = importlib.util.spec_from_file_location(module, ROOT / "benchmarks" / f"{module}.py")
    assert spec and spec.loader
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    assert rows.splitlines() == benchmark.TABLES[kind](benchmark.read_result(name), metrics.split())


def test_every_mark_of_a_table_has_one() -> None:
    assert sum(path.read_text().count("<!-- table:") for path in DOCUMENTS) == len(TABLES)
    assert {param.values[0] for param in TABLES} == {"long", "short", "quickstart"}

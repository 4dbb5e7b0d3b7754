"""Commands have one name, that of the command line, in code, documents and messages."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from verl_act.commands import COMMANDS
from verl_act.schema import WRITTEN_BY

ROOT = Path(__file__).resolve().parent.parent
HISTORY = {"CHANGELOG.md"}
RECORDS = ("benchmarks/results/", "verl_act/assets/")
"""Files that keep the command that was run, by its name of that time."""


def test_the_command_that_writes_a_file_is_one() -> None:
    assert {name for names in WRITTEN_BY.values() for name in names} < set(COMMANDS)


def test_no_text_calls_a_command_by_the_name_of_its_function() -> None:
    functions = {command.function.partition(":")[2] for command in COMMANDS.values()}
    spelling = re.compile("|".join(rf"\b{name.replace('_', '-')}\b" for name in sorted(functions) if "_" in name))
    assert spelling.search("run `make-games` first")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    files = [
        ROOT / name
        for name in listed
        if name.endswith((".py", ".md", ".yaml", ".jinja", ".sh", "Makefile"))
        and name not in HISTORY
        and not name.startswith(RECORDS)
        and name != "tests/test_commands.py"
    ]
    assert len(files) > 300
    assert [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for path in files
        if path.is_file()
        for match in spelling.finditer(path.read_text(encoding="utf-8"))
    ] == []

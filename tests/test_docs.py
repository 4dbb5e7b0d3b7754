"""Cross-cutting: the documentation site builds without a warning, its pages hold together, every command in them runs.

So do the commands of the README, of CONTRIBUTING and of the recipes' pages. A fenced block of commands says in a
comment in the line before it how it is run here: `<!-- run -->` as it stands. Where the whole would need minutes or a
GPU, our own commands are called in this process: `<!-- check -->` with `--check` at the end, `<!-- parse -->` up to the
arguments and the recipe that they give (other programs' commands are left out); `<!-- cfg -->` composes and validates
the configuration of a run of verl; `<!-- make -->` is a dry run in the repository. A command may go on in the next line
after a backslash, and a remark at its end is left out. A block of `python` is run where it says so; others show parts
of `examples/`, which have tests of their own.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest
from chromium import chromium
from parsed_command import parsed
from processes import clean_environment
from recipe_stages import composed
from test_config import validated
from typer.testing import CliRunner

from verl_act.__main__ import app
from verl_act.chain import load_recipe
from verl_act.chain.check import compose
from verl_act.chain.method_stages import plan
from verl_act.chain.stages import TrainingStage
from verl_act.config.settings import ActSettings, EpisodeSettings, MixtureSettings
from verl_act.evaluate.records import REQUIRED_KEYS
from verl_act.prompts.chat import ChatTemplate
from verl_act.prompts.compact import CompactTemplate
from verl_act.run_folder import RunFolder
from verl_act.settings.base import Settings

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
_GENERATED = ("commands", "data-act", "metrics", "recipes", "tables", "templates")
REFERENCE = [DOCS / "reference" / f"{name}.md" for name in _GENERATED]
GENERATED = [*REFERENCE, *(DOCS / "recipes").glob("*.md")]
FILES = sorted(
    path
    for path in (*DOCS.rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("recipes/*/README.md"))
    if path not in GENERATED and "_build" not in path.parts
)
ENDINGS = {"run": "", "check": " --check", "parse": "", "cfg": "", "make": " --dry-run"}
REMARK = re.compile(r" +# .*$")
LINK = re.compile(r"\]\((?!\w+:)([^)#]+)")
BLOCK = re.compile(
    r"^(?:<!-- (?P<how>\w+) -->\n)?```(?P<language>sh|bash|shell|console|python)\n(?P<text>.*?)^```", re.M | re.S
)


@dataclass(frozen=True)
class Block:
    page: str
    how: str | None
    language: str
    text: str

    def commands(self) -> Iterator[list[str]]:
        """What is given to the operating system."""
        if self.language == "python":
            yield [sys.executable, "-c", self.text]
        else:
            assert self.how is not None
            lines = self.text.replace("\\\n", " ").splitlines()
            yield from (["sh", "-ec", REMARK.sub("", line) + ENDINGS[self.how]] for line in lines)


def blocks() -> list[Block]:
    return [
        Block(page.relative_to(ROOT).as_posix(), found["how"], found["language"], found["text"])
        for page in FILES
        for found in BLOCK.finditer(page.read_text())
    ]


PAGES = sorted({block.page for block in blocks() if block.how})


def test_every_block_says_how_it_is_run() -> None:
    shell = (block for block in blocks() if block.language != "python")
    unmarked = [(block.page, block.text) for block in shell if block.how not in ENDINGS]
    assert not unmarked
    marks = sum(len(re.findall(r"^<!-- (?!table:)", page.read_text(), re.M)) for page in FILES)
    assert marks == sum(block.how is not None for block in blocks()), "a mark stands before no block"
    assert {"docs/tutorial.md", "README.md", "recipes/alfworld/README.md"} <= set(PAGES)


@pytest.mark.parametrize("block", [block for block in blocks() if block.how == "cfg"], ids=lambda block: block.page)
def test_a_documented_run_passes_verls_own_checks(block: Block) -> None:
    for command in block.commands():
        words = shlex.split(command[-1])
        config = composed(*words[words.index("verl.trainer.main_ppo") + 1 :])
        validated(config)
        assert config.trainer.save_freq > 0, "it would leave no model"


def test_no_command_stands_in_a_block_without_a_language() -> None:
    plain = {page.name: re.findall(r"^```\n(.*?)^```", page.read_text(), re.M | re.S) for page in FILES}
    assert not [
        (page, text) for page, texts in plain.items() for text in texts if re.match(r"\s*(python|make|pip|git) ", text)
    ]


@pytest.mark.parametrize("page", FILES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_prose_has_short_lines(page: Path) -> None:
    """Tables, blocks and images are as wide as they are."""
    text = re.sub(r"^(```|:::).*?^\1", "", page.read_text(), flags=re.M | re.S)
    assert [line for line in text.splitlines() if len(line) > 120 and line.lstrip()[0] not in "|!["] == []


@pytest.mark.parametrize("page", FILES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_what_a_page_links_to_is_there(page: Path) -> None:
    """Outside the site, whose links the browser follows."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
    targets = {link: (page.parent / link).resolve() for link in LINK.findall(text)}
    assert not [link for link, target in targets.items() if not target.exists() and target not in REFERENCE]


def test_the_page_of_files_names_every_key_of_a_reply() -> None:
    page = (DOCS / "reference" / "files.md").read_text()
    for file, keys in REQUIRED_KEYS.items():
        (table,) = re.findall(rf"^\| `{re.escape(file)}` \| \|\n(.*?)\n\n", page, re.M | re.S)
        described = {"split", "sample", "task_id", *re.findall(r"`(\w+)`", table)}
        assert set(keys) <= described, f"{file}: {set(keys) - described}"


def ours(how: str) -> list[Any]:
    """The arguments of our own commands in blocks of this kind."""
    found = []
    for block in (block for block in blocks() if block.how == how):
        commands = [one for command in block.commands() for one in command[-1].split(" && ")]
        for number, command in enumerate(commands):
            words = shlex.split(command)
            while "=" in words[0]:
                words.pop(0)  # a variable
            if words[0] in ("export", "pip", "ray"):
                continue
            assert words[0] == "verl-act", words
            found.append(pytest.param(words[1:], id=f"{block.page}-{number}"))
    return found


@pytest.mark.parametrize("words", ours("parse"))
def test_a_documented_command_takes_its_arguments(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`run` is further asked whether the recipe has the keys, and verl those of its configuration."""
    monkeypatch.chdir(tmp_path)
    context = parsed(words)
    if words[0] == "run":
        recipe = load_recipe(context.params["recipe"], context.args)
        for stage in plan(recipe, RunFolder(tmp_path), [0]):
            if isinstance(stage, TrainingStage):
                compose(stage)


@pytest.mark.parametrize("words", ours("check"))
def test_a_documented_check_finds_nothing(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, f"{done.output}\n{done.exception}"


@pytest.mark.slow
@pytest.mark.parametrize("page", sorted({block.page for block in blocks() if block.how in ("run", "make")}))
def test_the_commands_of_a_page_run_one_after_the_other(page: str, tmp_path: Path) -> None:
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    env = {**clean_environment(), "HOME": str(tmp_path), "PATH": path}
    for block in (block for block in blocks() if block.page == page and block.how in ("run", "make")):
        for command in block.commands():
            done = subprocess.run(
                command,
                cwd=ROOT if block.how == "make" else tmp_path,
                env=env,
                capture_output=True,
                text=True,
                timeout=500,
                check=False,
            )
            assert done.returncode == 0, f"{command[-1]}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("sphinx", reason="the site's tools are not installed (make docs)")
    folder = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", str(DOCS), str(folder)]
    done = subprocess.run(build, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def test_the_site_builds_without_a_warning(site: Path) -> None:
    assert {"index.html", "tutorial.html", "gaps.html"} <= {path.name for path in site.iterdir()}
    assert "verl-act-data-alternatives" in (site / "reference" / "commands.html").read_text()


def test_every_key_and_option_is_described(site: Path) -> None:
    def names(block: type, prefix: str = "") -> set[str]:
        keys = block.model_fields if issubclass(block, Settings) else [field.name for field in fields(block)]
        return {prefix + key for key in keys}

    expected = {
        "data-act": names(ActSettings) | names(MixtureSettings, "mix.") | names(EpisodeSettings, "episode."),
        "templates": names(ChatTemplate) | names(CompactTemplate),
    }
    for page, keys in expected.items():
        text = (site / "reference" / f"{page}.html").read_text()
        rows = re.findall(r'<tr.*?<span class="pre">([\w.]+)</span>.*?<td><p>([^<].*?)</p></td>\s*</tr>', text, re.S)
        assert {key for key, meaning in rows if meaning} == keys


def test_the_marks_of_blocks_are_not_shown(site: Path) -> None:
    pages = [page.removeprefix("docs/") for page in PAGES if page.startswith("docs/")]
    shown = {page: re.sub(r"<!--.*?-->", "", (site / page).with_suffix(".html").read_text()) for page in pages}
    assert not [page for page, text in shown.items() if re.search(r"&lt;!--|<p>% ", text)]


@pytest.fixture(scope="module")
def browser(site: Path) -> Iterator[Any]:
    with chromium() as running:
        yield running


def test_no_link_is_dead_and_no_page_is_too_wide(site: Path, browser: Any) -> None:
    tab = browser.new_page(viewport={"width": 360, "height": 800})
    pages = [path for path in sorted(site.rglob("*.html")) if "_static" not in path.parts]
    anchors: dict[str, set[str]] = {}
    links: dict[str, set[str]] = {}
    for path in pages:
        tab.goto(path.as_uri())
        anchors[path.as_uri()] = set(tab.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)"))
        links[path.as_uri()] = set(tab.evaluate("[...document.links].map(a => a.href)"))
        wide = tab.evaluate("document.documentElement.scrollWidth")
        assert wide <= 360, f"{path.name} is {wide} pixels wide on a screen of 360"
    dead = set()
    for page, targets in links.items():
        for target in (target for target in targets if target.startswith("file:")):
            file, _, anchor = target.partition("#")
            file = file.partition("?")[0]
            known = anchors.get(file)
            if (known is None and not Path(file.removeprefix("file://")).is_file()) or (
                known is not None and anchor and anchor not in known
            ):
                dead.add((page, target))
    assert not dead

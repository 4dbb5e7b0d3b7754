"""Sphinx: the documentation site (`make docs`)."""

import html
import inspect
import json
import re
import subprocess
import sys
from collections import defaultdict
from dataclasses import fields
from enum import Enum
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from sphinx.errors import ExtensionError
from sphinx.pycode import ModuleAnalyzer

import verl_act
import verl_act.schema
from verl_act.chain.recipe import Recipe
from verl_act.config.settings import ActSettings
from verl_act.dpo import DpoSettings
from verl_act.evaluate.metric_registry import METRICS, SECTIONS
from verl_act.prompts import get_template
from verl_act.prompts.registry import template_names
from verl_act.settings.base import Settings
from verl_act.settings.model import EngineOptions

project = "verl_act"
author = "The verl_act authors"
version = release = verl_act.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_copybutton"]
html_theme = "furo"
html_title = "verl_act"
html_static_path = ["_static"]
html_css_files = ["site.css"]
exclude_patterns = ["_build"]
html_last_updated_fmt = "%Y-%m-%d"

myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "show-inheritance": True}
# Docstrings are plain sentences with single back quotes.
default_role = "literal"


_DOCS = Path(__file__).parent
_HEAD = ("| key | value | default | meaning |", "|---|---|---|---|")


def _write(page, *lines):
    (_DOCS / "reference" / page).write_text("\n".join(lines) + "\n", encoding="utf-8")


# The page of commands is what the command line says of itself.
_typer = [sys.executable, "-m", "typer", "verl_act.__main__", "utils", "docs"]
_page = _DOCS / "reference" / "commands.md"
subprocess.run([*_typer, "--name", "verl-act", "--title", "Commands", "--output", str(_page)], check=True)
# Typer escapes help texts as for HTML, where Markdown's code shows them as they stand.
_page.write_text(html.unescape(_page.read_text(encoding="utf-8")), encoding="utf-8")


def _row(name, kind="", default="", text=""):
    """One line of Markdown for a key."""
    return f"| `{name}` | {kind} | {default} | {' '.join(text.split())} |"


def _settings_table(block, prefix=""):
    """The keys of a settings class."""
    for name, field in block.model_fields.items():
        kind, text = field.annotation, field.description or ""
        inner = [kind] if isinstance(kind, type) else get_args(kind)
        blocks = [kind for kind in inner if isinstance(kind, type) and issubclass(kind, Settings)]
        if blocks:
            yield _row(prefix + name, text=text)
            yield from _settings_table(blocks[0], f"{prefix}{name}." + ("" if blocks[0] is kind else "NAME."))
        else:
            values = kind if isinstance(kind, type) and issubclass(kind, Enum) else ()
            text = " ".join((text, *(f"`{value}`: {_docstring(kind, value.name)}" for value in values)))
            yield _row(prefix + name, _kind(kind), "required" if field.is_required() else _json(field.default), text)


def _template_table(names):
    """The options of templates of one class; `names` call it with different defaults."""
    made = {name: get_template(name) for name in names}
    block = type(made[names[0]])
    for field in fields(block):
        defaults = {name: _json(getattr(template, field.name)) for name, template in made.items()}
        same = len(set(defaults.values())) == 1
        default = defaults[names[0]] if same else ", ".join(f"{name}: {text}" for name, text in defaults.items())
        kind = get_type_hints(block, include_extras=True)[field.name]
        yield _row(field.name, _kind(kind), default, _docstring(block, field.name))


def _docstring(block, name):
    """The docstring below a name of a class. Raises `ExtensionError` where there is none."""
    for owner in block.__mro__:
        if owner.__module__ != "builtins":
            found = ModuleAnalyzer.for_module(owner.__module__).find_attr_docs().get((owner.__qualname__, name))
            if found:
                return " ".join(found).strip()
    raise ExtensionError(f"{block.__module__}.{block.__qualname__}.{name} has no docstring.")


def _json(value):
    return f"`{json.dumps(value, default=str)}`"


def _kind(kind):
    """A type as words: `int`, `text`, `a or b`, `list of files`."""
    names = {str: "text", Path: "file", type(None): "null", Any: "value", bool: "true or false", float: "number"}
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _kind(inner[0])
    if isinstance(kind, type) and issubclass(kind, Enum):
        inner, origin = list(kind), Literal
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in inner)
    if origin in (Union, UnionType):
        return " or ".join(map(_kind, inner))
    if origin in (list, tuple):
        return f"list of {_plural(inner[0])}"
    if origin is dict:
        return f"mapping to {_plural(inner[1])}"
    return names.get(kind, getattr(kind, "__name__", str(kind)))


def _plural(kind):
    words = _kind(kind)
    if words.startswith("list "):
        return words.replace("list", "lists", 1)
    return words if "`" in words else f"{words}s"


_engine = get_type_hints(EngineOptions, include_extras=True)
_write(
    "recipes.md",
    *("# Keys of recipes", "", Recipe.__doc__, "", *_HEAD, *_settings_table(Recipe), ""),
    *("## Keys of `engine_options`", "", "Any other is an argument of vLLM's engine.", ""),
    *("| key | value | meaning |", "|---|---|---|"),
    *(f"| `{name}` | {_kind(kind)} | {_docstring(EngineOptions, name)} |" for name, kind in _engine.items()),
    *("", "## Keys of `overrides` where `data` is `dpo`", "", "A run sets those that are required.", ""),
    *(*_HEAD, *_settings_table(DpoSettings)),
)
_write("data-act.md", "# Keys of `data.act`", "", ActSettings.__doc__, "", *_HEAD, *_settings_table(ActSettings))

_templates = defaultdict(list)
for _name in template_names():
    _templates[type(get_template(_name))].append(_name)
_lines = [
    "# Options of templates",
    "",
    "Keys of `template_options`, on the command line `--template-options KEY=VALUE`.",
]
for _class, _names in _templates.items():
    _lines += ["", f"## {', '.join(f'`{_name}`' for _name in _names)}", "", inspect.getdoc(_class), ""]
    _lines += [*_HEAD, *_template_table(_names)]
_write("templates.md", *_lines)


_HIGHER = {1: "higher", -1: "lower", 0: ""}
_lines = ["# Metrics of evaluations", "", "Keys of `metrics` in `metrics.json`, below each split.", ""]
_lines += ["| metric | of | what | better | by group |", "|---|---|---|---|---|"]
for _name, _metric in METRICS.items():
    _groups = ", ".join(_metric.groups) or ("yes" if _metric.group else "")
    _cells = (f"`{_name}`", SECTIONS[_metric.section].title, _metric.full_title, _HIGHER[_metric.direction], _groups)
    _lines.append(f"| {' | '.join(_cells)} |")
_write("metrics.md", *_lines)


def _columns(schema):
    for column in schema:
        yield f"| `{column.name}` | {str(column.type).replace('|', ' ')} | {'yes' if column.nullable else ''} |"


_lines = ["# Columns of tables"]
for _name in ("TASK", "TRAJECTORY", "ALTERNATIVES", "PAIR", "REFLECTION", "SFT", "DPO"):
    _lines += ["", f"## {_name.lower()}", "", "| column | type | may be null |", "|---|---|---|"]
    _lines += _columns(getattr(verl_act.schema, _name))
_write("tables.md", *_lines)

# The recipes' pages are their READMEs, which link to each other and to these documents as files of the repository.
(_DOCS / "recipes").mkdir(exist_ok=True)
for _readme in sorted((_DOCS.parent / "recipes").glob("*/README.md")):
    if _readme.parent.name == "mix":  # a page of its own, how-to/mix.md
        continue
    _text = re.sub(r"\]\(\.\./(\w+)/README\.md", r"](\1.md", _readme.read_text(encoding="utf-8"))
    _text = _text.replace("](../../docs/", "](../")
    (_DOCS / "recipes" / f"{_readme.parent.name}.md").write_text(_text, encoding="utf-8")


def _link_recipes(_app, _page_name, source):
    source[0] = re.sub(r"\]\((?:\.\./)+recipes/(\w+)/README\.md", r"](/recipes/\1.md", source[0])


def setup(app):
    """Links to a recipe's README lead to its page of the site."""
    app.connect("source-read", _link_recipes)

"""Sphinx: the documentation site (`make docs`)."""

import json
import re
import subprocess
import sys
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import verl_act
import verl_act.schema
from verl_act.chain.recipe import Recipe
from verl_act.settings.base import Settings

project = "verl_act"
author = "the authors of verl_act"
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

# The page of commands is what the command line says of itself.
_page = _DOCS / "reference" / "commands.md"
_typer = [sys.executable, "-m", "typer", "verl_act.__main__", "utils", "docs"]
subprocess.run([*_typer, "--name", "verl-act", "--title", "Commands", "--output", str(_page)], check=True)


def _settings_table(block, prefix=""):
    """One line of Markdown for each key: its type, default and help text."""
    for name, field in block.model_fields.items():
        kind = field.annotation
        text = " ".join((field.description or "").split())
        if isinstance(kind, type) and issubclass(kind, Settings):
            yield f"| `{prefix}{name}` | | | {text} |"
            yield from _settings_table(kind, f"{prefix}{name}.")
            continue
        blocks = [kind for kind in get_args(kind) if isinstance(kind, type) and issubclass(kind, Settings)]
        default = "required" if field.is_required() else f"`{json.dumps(field.default, default=str)}`"
        if blocks:
            yield f"| `{prefix}{name}` | | | {text} |"
            yield from _settings_table(blocks[0], f"{prefix}{name}.NAME.")
        else:
            yield f"| `{prefix}{name}` | {_kind(kind)} | {default} | {text} |"


def _kind(kind):
    """A type as words: `int`, `text`, `a or b`, `list of files`."""
    names = {str: "text", Path: "file", type(None): "null", Any: "value", bool: "true or false", float: "number"}
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _kind(inner[0])
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in inner)
    if origin in (Union, UnionType):
        return " or ".join(map(_kind, inner))
    if origin is list:
        return f"list of {_kind(inner[0])}s"
    if origin is dict:
        return f"mapping to {_kind(inner[1])}s"
    return names.get(kind, getattr(kind, "__name__", str(kind)))


_lines = ["# Keys of recipes", "", Recipe.__doc__, "", "| key | value | default | meaning |", "|---|---|---|---|"]
(_DOCS / "reference" / "recipes.md").write_text("\n".join([*_lines, *_settings_table(Recipe)]) + "\n", encoding="utf-8")


def _columns(schema):
    for column in schema:
        yield f"| `{column.name}` | {str(column.type).replace('|', ' ')} | {'yes' if column.nullable else ''} |"


_lines = ["# Columns of tables", ""]
for _name in ("TASK", "TRAJECTORY", "ALTERNATIVES", "PAIR", "REFLECTION", "SFT", "DPO"):
    _lines += [f"## {_name.lower()}", "", "| column | type | may be null |", "|---|---|---|"]
    _lines += [*_columns(getattr(verl_act.schema, _name)), ""]
(_DOCS / "reference" / "tables.md").write_text("\n".join(_lines), encoding="utf-8")

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

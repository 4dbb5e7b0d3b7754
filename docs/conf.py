"""Sphinx: the documentation site (`make docs`)."""

import re
import subprocess
import sys
from pathlib import Path

import verl_act

project = "verl_act"
author = "the authors of verl_act"
version = release = verl_act.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
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

"""Sphinx: the documentation site (`make docs`)."""

import subprocess
import sys
from pathlib import Path

import verl_act

project = "verl_act"
author = "the authors of verl_act"
version = release = verl_act.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = "verl_act"
html_static_path = ["_static"]
html_css_files = ["site.css"]
exclude_patterns = ["_build"]

myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "show-inheritance": True}
# Docstrings are plain sentences with single back quotes.
default_role = "literal"


# The page of commands is what the command line says of itself.
_page = Path(__file__).with_name("reference") / "commands.md"
_typer = [sys.executable, "-m", "typer", "verl_act.__main__", "utils", "docs"]
subprocess.run([*_typer, "--name", "python -m verl_act", "--title", "Commands", "--output", str(_page)], check=True)

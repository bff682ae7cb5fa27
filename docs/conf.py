"""Sphinx configuration, with one directive of our own: the real help of a command."""

import re
import subprocess
import sys
from pathlib import Path

from docutils import nodes
from docutils.parsers.rst import Directive

ROOT = Path(__file__).parents[1]

project = "adr"
author = "The developers of adr"
project_copyright = "2016-2026, the developers of adr"
release = re.search(r'"(.+)"$', (ROOT / "adr" / "version.py").read_text("utf-8"), re.M)[1]
version = release

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"adr {release}"
default_role = "py:obj"
highlight_language = "console"

napoleon_google_docstring = False
napoleon_use_rtype = False
autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_preserve_defaults = True
autodoc_default_options = {"members": True, "show-inheritance": True}


class CommandHelp(Directive):
    """Show what ``adr COMMAND --help`` prints, run while the page is built."""

    required_arguments = 1

    def run(self):
        command = [sys.executable, "-m", "adr", self.arguments[0], "--help"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise self.error(f"adr {self.arguments[0]} --help failed: {done.stderr}")
        block = nodes.literal_block(done.stdout, done.stdout.rstrip())
        block["language"] = "text"
        return [block]


def setup(app):
    app.add_directive("adr-help", CommandHelp)
    return {"parallel_read_safe": True}

"""How the documentation is built: Markdown by MyST, Python's docstrings by autodoc, and the parts of _reference.py.

Nothing is fetched, neither while building nor by the pages. `make docs` builds; this folder must be on PYTHONPATH.
"""

from __future__ import annotations

import _reference
from sphinx.application import Sphinx

from deploy_prune.version import __version__

project, author, release = "deploy-prune", "the deploy-prune authors", __version__
project_copyright = "the deploy-prune authors, Apache-2.0"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_*"]

myst_heading_anchors = 4
myst_enable_extensions = ["deflist"]

autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
autodoc_class_signature = "separated"
python_maximum_signature_line_length = 80
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = f"deploy-prune {release}"
html_copy_source = html_show_sourcelink = html_show_sphinx = False


def fill(_app: Sphinx, _page: str, source: list[str]) -> None:
    """Put the generated parts into a page before it is read."""
    source[0] = _reference.filled(source[0])


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", fill)

"""How the manual is built: ``make docs``; warnings are errors, and so is a public name that no page documents."""

from __future__ import annotations

import sys
from pathlib import Path

from sphinx.application import Sphinx

sys.path.insert(0, str(Path(__file__).parent))

from reference import complain

import regrow

project = "regrow"
author = copyright = "The regrow contributors"
version = release = regrow.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx.ext.mathjax",
    "sphinx_copybutton",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["built", "howto", "gallery"]  # the last two are what the gallery's pages are made from
default_role = "code"
nitpicky = False  # names of other libraries' objects can't be looked up without a network

html_theme = "furo"
html_title = f"regrow {version}"
html_static_path = ["_static"]
html_css_files = ["manual.css"]

myst_enable_extensions = ["deflist", "colon_fence"]
myst_heading_anchors = 3
copybutton_prompt_text = r"\$ |>>> |\.\.\. "
copybutton_prompt_is_regexp = True

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True}
napoleon_use_ivar = True
napoleon_use_rtype = False

sphinx_gallery_conf = {
    "examples_dirs": ["howto", "gallery"],
    "gallery_dirs": ["made/howto", "made/gallery"],
    "filename_pattern": "/plot_",  # others need torchrun, a folder, or a library's own loop
    "ignore_pattern": r"__init__\.py",
    "within_subsection_order": "FileNameSortKey",
    "download_all_examples": False,
    "remove_config_comments": True,
    "show_memory": False,
    "write_computation_times": False,
}


def setup(app: Sphinx) -> None:
    """Complain about what is public and has no page, once all pages have been read."""
    app.connect("env-check-consistency", complain)

"""Configuration of Sphinx: `make docs` builds docs/html from this folder, without a network."""

from __future__ import annotations

import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]  # extensions.py and generate.py; the package
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # advice on packages not used here

project = "unlearn"
author = "the unlearn authors"
copyright = "2026, the unlearn authors"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
    "extensions",
]
exclude_patterns = ["html"]
html_theme = "furo"
html_title = "unlearn"
html_static_path = ["_static"]
html_css_files = ["unlearn.css"]
html_show_sphinx = False
html_copy_source = False
html_math_renderer = "mathml"

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

toc_object_entries = False  # a page's table of contents holds its sections
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 80
napoleon_numpy_docstring = False
napoleon_use_rtype = False

copybutton_exclude = ".linenos, .gp"

"""How Sphinx builds these pages: `make docs`. What it cannot resolve is an error."""

import sparsify

project = "sparsify"
author = "The sparsify contributors"
version = release = sparsify.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"sparsify {version}"
html_extra_path = ["llms.txt"]

nb_execution_mode = "off"  # notebooks are stored with their outputs, which tests/test_notebooks.py makes anew
myst_heading_anchors = 4
autodoc_typehints = "none"
autodoc_member_order = "bysource"
autodoc_class_signature = "separated"
napoleon_google_docstring = True
default_role = "code"
nitpick_ignore_regex = [("py:.*", ".*")]  # of names that are given without a package, as Raises and bases are
suppress_warnings = ["myst.xref_missing"]

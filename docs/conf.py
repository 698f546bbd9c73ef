"""How Sphinx builds these pages: `make docs`, which fails at every warning."""

import re

import sparsify

project = "sparsify"
author = "The sparsify contributors"
version = release = sparsify.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinxcontrib.mermaid"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"sparsify {version}"
html_extra_path = ["llms.txt"]

nb_execution_mode = "off"  # notebooks are stored with their outputs; tests/test_notebooks.py runs them
myst_heading_anchors = 4
myst_fence_as_directive = ["mermaid"]

autodoc_typehints = "none"
autodoc_member_order = "bysource"
napoleon_custom_sections = ["Shape"]
default_role = "code"
nitpick_ignore_regex = [("py:.*", ".*")]  # bases and exceptions of PyTorch and Python, whose pages are elsewhere


def as_written(app, what, name, object, options, lines):
    """Docstrings are plain text: only backticks mean something in it, and lines of `name: text` are a list."""
    entry, is_listed, is_example = re.compile(r"[a-z_]\w*(, [a-z_]\w*)*: "), False, False
    found = []
    for line in lines:
        is_example = line.lstrip().startswith(">>>") or (is_example and bool(line.strip()))
        if not is_example:
            parts = re.split(r"(`[^`]*`)", line)
            line = "".join(part if part.startswith("`") else re.sub(r"([*|])", r"\\\1", part) for part in parts)
        if entry.match(line):
            found += [] if is_listed else [""]
            is_listed, line = True, "- " + line
        elif is_listed:
            is_listed = line.startswith("    ")
            line = line[2:] if is_listed else line
        found.append(line)
    lines[:] = found


def plainly(app, what, name, object, options, signature, returned):
    """Defaults by their names: `nn.Linear` and `erdos_renyi`."""
    signature = re.sub(r"<class 'torch\.nn\.[\w.]+\.(\w+)'>", r"nn.\1", signature or "")
    return re.sub(r"<function (\w+)>", r"\1", signature).replace(", )", ",)") or None, returned


def without_links_out(app, docname, source):
    """The README and CONTRIBUTING are no pages here: what pages link to beside docs/ is named."""
    if "/" not in docname:
        source[0] = re.sub(r"\[([^]]+)\]\(\.\./([^)]+)\)", r"\1 (`\2` in the repository)", source[0])


def setup(app):
    """All of it comes before what napoleon and Sphinx make of the text."""
    app.connect("autodoc-process-docstring", as_written, priority=100)
    app.connect("autodoc-process-signature", plainly)
    app.connect("source-read", without_links_out)

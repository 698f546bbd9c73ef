"""The pages as a whole: links lead somewhere, every public name and page is listed, the README and docs/ alike."""

import json
import re
from pathlib import Path

import pytest

import sparsify
from tests.test_docstrings import FACES, PUBLIC

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
TEXTS = {path: path.read_text() for path in [ROOT / "README.md", *DOCS.glob("*.md"), ROOT / ".github/CONTRIBUTING.md"]}
for path in DOCS.glob("notebooks/*.ipynb"):
    cells = json.loads(path.read_text())["cells"]
    TEXTS[path] = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
TEXTS[DOCS / "llms.txt"] = LLMS = (DOCS / "llms.txt").read_text()


def without_code(text):
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


def links(text):
    """The relative ones: (path, anchor)."""
    for target in re.findall(r"\]\(([^()\s]+)\)", without_code(text)):
        if "://" not in target:
            path, _, anchor = target.partition("#")
            yield path, anchor


def anchors(text):
    """What headings are called in links: lower case, without punctuation, with hyphens for spaces."""
    for heading in re.findall(r"^#+ (.+)$", without_code(text), flags=re.MULTILINE):
        yield re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


LINKS = sorted({(str(page.relative_to(ROOT)), *link) for page, text in TEXTS.items() for link in links(text)})


@pytest.mark.parametrize(("page", "path", "anchor"), LINKS)
def test_a_link_leads_somewhere(page, path, anchor):
    target = ((ROOT / page).parent / path).resolve() if path else ROOT / page
    assert target.exists()
    assert not anchor or anchor in set(anchors(TEXTS[target]))


def test_links_and_anchors_are_found():
    text = "[a](b.md#c) [d](https://e) ![f](g.png)\n```\n[h](i)\n```\n# What's `in_it`, now?\n"
    assert list(links(text)) == [("b.md", "c"), ("g.png", "")]
    assert list(anchors(text)) == ["whats-in_it-now"]
    assert len(LINKS) > 150


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_is_in_the_api_and_in_llms(name):
    own = name.rpartition(".")[2]
    places = {name, f"sparsify.{own}"} if own in sparsify.__all__ else {name}
    assert places & set(re.findall(r"^\.\. auto\w+:: (\S+)$", TEXTS[DOCS / "api.md"], flags=re.MULTILINE))
    assert re.search(rf"\b{own}\b", LLMS)


def test_all_faces_are_looked_at():
    modules = {path.stem for path in (ROOT / "sparsify").glob("*.py")} - {"__init__"}
    assert {face.__name__ for face in FACES} == {f"sparsify.{name}" for name in modules}


def test_the_index_has_forty_questions_and_every_page():
    index = TEXTS[DOCS / "index.md"]
    assert len(re.findall(r"^\| .+\? \| .*\]\(.+\) \|$", index, flags=re.MULTILINE)) > 40
    contents = {
        line for block in re.findall(r"^```{toctree}\n(.*?)```", index, re.DOTALL | re.M) for line in block.split()
    }
    pages = {str(page.relative_to(DOCS)) for page in TEXTS if DOCS in page.parents} - {"index.md", "llms.txt"}
    assert pages == {page for page in pages if page.rpartition(".")[0] in contents}
    assert pages == {page for page in pages if f"({page})" in LLMS}


def test_a_page_asks_a_question_and_begins_with_an_example_or_says_what_is_there():
    asked = [page for page, text in TEXTS.items() if page.parent == DOCS and re.match(r"# .+\?", text)]
    assert len(asked) >= 20

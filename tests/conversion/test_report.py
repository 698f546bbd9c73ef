"""What the table, its last rows, the plain data and the HTML say."""

import csv
import io
import json
from html.parser import HTMLParser

import pytest
import torch
from torch import nn

from sparsify import GMP, LayerReport, Report, epsilon, plan, sparsify, summary
from sparsify._src.conversion.table import as_html, as_text
from tests.support.models import mlp


def totals(report):
    return [(total.name, round(total.density, 3)) for total in report.totals]


def lines(report):
    return [line.split("  ")[0] for line in str(report).splitlines()]


def language_model():
    """Embeddings, linear layers of which one is small, a norm, and a head that is tied to the embedding."""
    model = nn.Sequential(
        nn.Embedding(900, 64), nn.Linear(64, 64), nn.LayerNorm(64), nn.Linear(64, 64), nn.Linear(64, 900, bias=False)
    )
    model[4].weight = model[0].weight
    return model


def test_the_density_that_was_asked_for_and_that_of_the_whole_model_are_both_there():
    model = language_model()
    report = plan(model, 0.1)
    assert totals(report) == [("sparse layers", 0.1), ("whole model", 0.888)]
    assert lines(report)[1:7] == ["0", "1", "3", "4", "sparse layers", "whole model"]
    assert str(report).splitlines()[6].endswith("  with the layers left dense")
    part, whole = report.totals
    assert (part.shape, part.nnz) == ((2 * 64 * 64,), 819)
    assert (whole.shape, whole.nnz) == ((2 * 64 * 64 + 900 * 64,), 819 + 900 * 64), "the tied weight once"
    sparsify(model, None, 0.1)
    assert totals(summary(model)) == totals(report)


def test_where_all_layers_share_the_density_one_total_suffices():
    assert totals(plan(mlp(784, 300, 100, 10), 0.1)) == [("whole model", 0.1)]
    assert totals(plan(mlp(40, 30, 20), {"*": 0.1})) == [("whole model", 0.1)]
    assert "left dense" not in str(plan(mlp(40, 30, 20), 0.1))


def test_layers_whose_share_is_1_count_where_the_density_is_told():
    model = nn.Sequential(nn.Embedding(500, 784), *mlp(784, 300, 100, 10))
    report = plan(model, 0.1)
    assert [row.shares for row in report.layers] == [False, True, True, True]
    assert report.layers[3].reason == "its density is 1"
    assert totals(report) == [("shared density", 0.1), ("whole model", 0.636)]
    assert str(report).splitlines()[5].endswith("  the sparse layers, and those whose density is 1")


@pytest.mark.parametrize("density", [{"0": 0.05, "2": 0.3}, epsilon(2)])
def test_where_each_layer_has_a_density_of_its_own_none_is_shared(density):
    model = nn.Sequential(*mlp(784, 300, 100), nn.Bilinear(3, 3, 3))
    report = plan(model, density)
    assert not any(row.shares for row in report.layers)
    assert [total.name for total in report.totals] == ["sparse layers", "whole model"]
    assert report.totals[0].nnz == sum(row.nnz for row in report.sparse)


def test_sparse_layers_that_do_not_share_the_density_are_not_counted_with_those_that_do():
    model = mlp(40, 30, 20, 10)
    model, _ = sparsify(model, None, {"0": 0.5})
    report = plan(model, 0.1)
    assert [row.shares for row in report.layers] == [False, True, True]
    assert totals(report)[0] == ("shared density", 0.1)


def test_layers_that_are_pruned_further_share_the_density():
    model = mlp(40, 30, 20)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model, optimizer = sparsify(model, optimizer, 0.5)
    report = plan(nn.Sequential(model, nn.Embedding(9, 9)), 0.1, optimizer=optimizer, evolution=GMP(until=10))
    assert totals(report)[0] == ("sparse layers", 0.1)


def test_nothing_sparse_has_one_total():
    assert totals(summary(language_model())) == [("whole model", 1.0)]


def test_rows_are_plain_data_one_for_each_layer():
    model = nn.Sequential(nn.Embedding(50, 40), nn.Linear(40, 30))
    model, optimizer = sparsify(model, torch.optim.AdamW(model.parameters()), 0.2)
    report = summary(model, optimizer)
    rows = report.rows()
    assert json.loads(json.dumps(rows)) == rows
    assert {type(value) for row in rows for value in row.values()} <= {str, int, float, bool, type(None)}
    embedding, linear = rows
    assert embedding.keys() == linear.keys()
    layer = report.layers[1]
    expected = {"layer": "1", "kind": "SparseLinear", "shape": "30 x 40", "places": 1200, "connections": 240}
    expected |= {"density": 0.2, "sparse": True, "shares": False, "reason": None}
    assert {name: linear[name] for name in expected} == expected
    for name in ("bytes", "dense_bytes", "training_bytes", "dense_training_bytes", "milliseconds", "speed_up"):
        assert linear[name] == getattr(layer, name) is not None
    assert linear["without_inputs"] == layer.without_inputs
    assert (embedding["sparse"], embedding["reason"], embedding["speed_up"]) == (
        False,
        "only linear layers and convolutions become sparse",
        None,
    )
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0].keys())
    writer.writeheader()
    writer.writerows(rows)
    assert [row["layer"] for row in csv.DictReader(io.StringIO(text.getvalue()))] == ["0", "1"]


class Cells(HTMLParser):
    """The text of each cell of a table, by the part of the table that it is in."""

    def __init__(self):
        super().__init__()
        self.open, self.found = [], {"thead": [], "tbody": [], "tfoot": [], "p": []}

    def handle_starttag(self, tag, attributes):
        self.open.append(tag)
        if tag == "tr":
            self.found[self.open[-2]].append([])
        if tag in ("td", "th"):
            self.found[self.open[-3]][-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, "every tag is closed where it was opened"

    def handle_data(self, data):
        if self.open[-1] in ("td", "th"):
            self.found[self.open[-3]][-1][-1] += data
        else:
            self.found[self.open[-1]].append(data)


def cells(html):
    parser = Cells()
    parser.feed(html)
    assert parser.open == []
    return parser.found


def test_a_notebook_shows_what_the_text_says():
    report = plan(language_model(), 0.1, skip="1")
    found = cells(report._repr_html_())
    written = [cell for part in ("thead", "tbody", "tfoot") for row in found[part] for cell in row if cell]
    assert "".join("".join(written).split()) + "".join("".join(found["p"]).split()) == "".join(str(report).split())
    assert [len(found[part]) for part in ("thead", "tbody", "tfoot")] == [1, 4, 2]
    assert found["p"] == [*report.notes, f"speed: {report.told}"] != [f"speed: {report.told}"]


def test_html_shows_names_as_they_are():
    name = "<script>alert(\"x\" & 'y')</script>"
    row = LayerReport(name, "<b>Own</b>", (3, 4), 12, 48, 48, "<i>its</i> reason & more")
    html = Report((row,), notes=("<u>note</u>",))._repr_html_()
    assert "<script" not in html
    found = cells(html)
    assert found["tbody"][0][0] == name
    assert found["tbody"][0][-1] == "<b>Own</b> left dense: <i>its</i> reason & more"
    assert found["p"] == ["<u>note</u>"]


def test_numbers_stand_on_the_right_and_notes_below():
    text = as_text(["layer", "n", ""], [["a", "1", "x"], ["long", "100", ""]], ["a note"])
    assert text == "layer    n\na        1  x\nlong   100\na note"
    assert "text-align: right" in as_html(["n"], [["1"]], [], [])
    assert "text-align: left" in as_html(["layer"], [["1"]], [], [])


def test_what_is_below_1_is_never_shown_as_1():
    row = LayerReport("a", "Linear", (3, 4), 12, 48, 48, None, milliseconds=1.0, dense_milliseconds=0.97)
    assert "0.97 x" in str(Report((row,)))
    assert "slower than dense" in str(Report((row,)))

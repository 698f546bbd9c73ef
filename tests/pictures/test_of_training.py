import numpy as np
import pytest
import torch

from sparsify import plot
from tests.support.records import history


def strokes(axes):
    """Where evolutions are marked."""
    (marks,) = axes.collections
    return [segment[0][0] for segment in marks.get_segments()]


def test_loss_is_drawn_with_its_running_mean_and_the_evolutions():
    losses = torch.linspace(3, 1, 100)
    axes = plot.loss(losses, history())
    raw, mean = axes.get_lines()
    np.testing.assert_allclose(raw.get_ydata(), losses)
    assert raw.get_xdata().tolist() == list(range(1, 101))
    np.testing.assert_allclose(mean.get_ydata()[:3], [losses[0], losses[:2].mean(), losses[1:3].mean()], rtol=1e-6)
    assert strokes(axes) == [10, 20, 30]
    texts = [text.get_text() for text in axes.get_legend().get_texts()]
    assert texts == ["of each step", "mean of the last 2 steps", "3 evolutions"]


def test_the_first_losses_do_not_press_the_others_to_the_ground():
    losses = [100.0] * 2 + [2.0] * 97 + [4.0]
    assert plot.loss(losses).get_ylim() == (0, 5)
    assert plot.loss([-1.0, -2.0]).get_ylim()[0] < -2


def test_losses_may_be_as_training_has_them():
    losses = [torch.tensor(2.0, requires_grad=True) ** 2, 1.5]
    assert list(plot.loss(losses).get_lines()[0].get_ydata()) == [4, 1.5]


def test_losses_must_be_finite_and_reach_the_last_evolution():
    for wrong in [], [1.0, float("nan")]:
        with pytest.raises(ValueError, match=r"^losses must be finite numbers, one for each step"):
            plot.loss(wrong)
    with pytest.raises(ValueError, match=r"^losses must be of all steps up to .* after step 30, got 29"):
        plot.loss([1.0] * 29, history())
    plot.loss([1.0] * 30, history())
    with pytest.raises(ValueError, match=r"^history must hold"):
        plot.loss([1.0], [])


def test_epochs_marks_evolutions_at_their_part_of_an_epoch():
    axes = plot.epochs({"dense": [90.0, 97.0, 98.0], "SET": [80.0, 96.0, 97.5]}, history(), steps=20)
    dense, sparse = axes.get_lines()
    assert list(dense.get_xdata()) == [1, 2, 3]
    assert list(sparse.get_ydata()) == [80, 96, 97.5]
    assert strokes(axes) == [0.5, 1, 1.5]
    low, high = axes.get_ylim()
    assert low < 80
    assert high <= 100


def test_differences_due_to_chance_do_not_fill_the_picture():
    low, high = plot.epochs({"a": [98.0, 98.1], "b": [98.05, 98.12]}).get_ylim()
    assert (low, high) == (95, 100)
    late = plot.epochs({"a": [10.0, *[98.0] * 19]})
    assert late.get_ylim() == (95, 100), "what comes first is left out"


@pytest.mark.parametrize(
    ("results", "words"),
    [
        ({}, "results must hold accuracies for each name, got {}"),
        ({"a": []}, "results must hold accuracies for each name"),
        ({"a": [98.0, 101.0]}, "results must be accuracies in percent, got 101.0"),
        ({"a": [0.98, 0.99]}, "results must be in percent, got 0.99 at most. Multiply shares by 100"),
    ],
)
def test_accuracies_must_be_in_percent(results, words):
    with pytest.raises(ValueError, match=f"^{words}"):
        plot.epochs(results)


def test_marks_need_the_steps_of_an_epoch():
    with pytest.raises(TypeError, match=r"^steps must be a whole number, got None"):
        plot.epochs({"a": [98.0]}, history())

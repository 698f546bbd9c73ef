import copy
import pickle

import numpy as np
import pytest
import torch
from matplotlib import pyplot
from PIL import Image
from torch import nn

from sparsify import SET, SparseLinear, plot, sparsify
from sparsify._src.pictures import film as room
from tests.support.records import record


def trained(film, model, steps=3):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model, optimizer = sparsify(model, optimizer, 0.2, evolution=SET(interval=1), on_evolve=film, seed=0)
    for _ in range(steps):
        model(torch.randn(8, 16)).square().sum().backward()
        optimizer.step()
    return optimizer


def network():
    return nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 2))


def test_a_film_of_the_input_map_moves_and_is_saved(tmp_path):
    model = network()
    film = plot.Film.inputs(lambda: model[0], (4, 4))
    trained(film, model)
    path = film.save(tmp_path / "inputs.gif", seconds=1.5)
    with Image.open(path) as gif:
        frames = [np.asarray(gif.convert("RGB")) for gif.n in range(gif.n_frames) if gif.seek(gif.n) is None]
        assert gif.info["loop"] == 0
    assert len(frames) == 3
    assert frames[0].shape == film.frames[0].shape
    assert (frames[0] != frames[1]).any()
    assert (frames[1] != frames[2]).any()
    assert np.abs(frames[2].astype(int) - film.frames[2]).mean() < 4, "colours are few, but near"
    assert not pyplot.get_fignums()


def test_a_film_of_a_graph_draws_the_model_that_is_being_sparsified():
    model = network()
    film = plot.Film.graph(model, every=2)
    trained(film, model, steps=5)
    assert len(film.frames) == 3
    assert all(frame.dtype == np.uint8 for frame in film.frames)


def test_the_optimizer_is_copied_and_pickled_without_the_film():
    model = network()
    film = plot.Film.inputs(lambda: model[0], (4, 4))
    optimizer = trained(film, model, steps=1)
    for again in copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer)):
        again.evolve()
    assert len(film.frames) == 1
    optimizer.evolve()
    assert len(film.frames) == 2


def test_frames_are_thinned_evenly(monkeypatch):
    monkeypatch.setattr(room, "MOST", 4)
    drawn = []
    film = plot.Film(lambda axes: drawn.append(axes), size=(1, 1))
    steps = []
    monkeypatch.setattr(film, "take", lambda words, take=film.take: (steps.append(words), take(words)))
    for step in range(20):
        film(record(step))
    assert len(film.frames) <= 4
    assert steps == [f"after step {step}" for step in (0, 1, 2, 3, 4, 6, 8, 12, 16)]


def test_a_film_keeps_one_scale():
    tops = []
    counts = [torch.tensor([1, 2, 3, 4]), torch.tensor([1, 2, 3, 40])]

    def draw(axes):
        plot.inputs(counts[len(tops)], (2, 2), axes, 8)
        tops.append(axes.images[0].get_clim()[1])

    film = plot.Film(draw)
    film.take("first")
    film.take("second")
    assert tops == [8, 8]


def test_the_scale_of_an_input_film_follows_from_its_first_frame(monkeypatch):
    layers, tops = [], []
    monkeypatch.setattr(room, "inputs", lambda counts, shape, axes, most: tops.append(most))
    film = plot.Film.inputs(lambda: layers[-1], (2, 2))
    for outputs in 3, 5:
        layers.append(SparseLinear(4, outputs, density=1.0))
        film.take("now")
    assert tops == [3.75, 3.75]


def test_films_refuse(tmp_path):
    with pytest.raises(TypeError, match=r"^draw must be a function of an Axes, got"):
        plot.Film(3)
    with pytest.raises(ValueError, match=r"^every must be at least 1, got 0"):
        plot.Film(print, every=0)
    film = plot.Film(lambda axes: None, size=(1, 1))
    with pytest.raises(ValueError, match=r"^a film must have frames to be saved, got none"):
        film.save(tmp_path / "film.gif")
    film.take("now")
    with pytest.raises(ValueError, match=r"^path must end in \.gif, got 'film.png'"):
        film.save("film.png")
    with pytest.raises(ValueError, match=r"^seconds must be above 0, got 0"):
        film.save(tmp_path / "film.gif", seconds=0)
    assert film.save(tmp_path / "film.gif").exists()


def test_a_short_film_of_many_frames_shows_some_and_the_last(tmp_path, monkeypatch):
    film = plot.Film(lambda axes: axes.axhline(len(film.frames)), size=(1, 1))
    for _ in range(30):
        film.take("")
    with Image.open(film.save(tmp_path / "film.gif", seconds=0.2)) as gif:
        assert gif.n_frames == 10

"""`Film`: a picture after each evolution, saved as a GIF that moves."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import nn

from sparsify._src.checks import check_count, check_number, shown
from sparsify._src.layers.map import SparseMap
from sparsify._src.pictures.counting import as_image, checked_layer, input_counts
from sparsify._src.pictures.drawing import check_matplotlib
from sparsify._src.pictures.graph import graph
from sparsify._src.pictures.of_layers import inputs
from sparsify._src.training.record import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST = 200
"""Frames that a film keeps at most."""

COLOURS = 96
"""Of a GIF: all its frames share them."""

SHORTEST = 0.02
"""Seconds of a frame: what is shorter, viewers play slowly."""

LAST = 1.0
"""Seconds that the last frame stays longer."""


class Film:
    """Draw a frame after each evolution, and save them as a GIF that moves: pass it as `on_evolve`.

    Frames are images in memory, 200 at most: beyond that every other one is left out, and from then on only every other
    evolution is drawn. No window opens. Where the optimizer is copied or pickled, the film stays behind.

    Args:
        draw: draws a frame into the empty axes that it is given, such as `lambda axes: plot.graph(model, axes)`.
        every: draw after one in so many evolutions.
        size: of a frame, (width, height) in inches of 80 pixels.
    Attributes:
        frames: images uint8 (height, width, 3), so far.
    Raises:
        TypeError, ValueError: draw is no function, or every is below 1.
    Example:
        >>> from sparsify import plot
        >>> model = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> film = plot.Film.graph(model)
        >>> sgd = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> model, sgd = sparsify(model, sgd, 0.3, evolution=SET(interval=1), on_evolve=film)
        >>> for _ in range(2):
        ...     model(torch.randn(8, 12)).square().sum().backward()
        ...     sgd.step()
        >>> len(film.frames)
        2
    """

    def __init__(
        self, draw: "Callable[[Axes], object]", every: int = 1, *, size: tuple[float, float] = (4.0, 3.6)
    ) -> None:
        if not callable(draw):
            raise TypeError(f"draw must be a function of an Axes, got {shown(draw)}.")
        check_count("every", every, 1)
        check_matplotlib()
        self.draw, self.size = draw, size
        self.frames: list[np.ndarray] = []
        self._every, self._evolutions = every, 0

    @classmethod
    def inputs(
        cls,
        layer: SparseMap | Callable[[], SparseMap],
        shape: tuple[int, ...] | None = None,
        every: int = 1,
        most: float | None = None,
    ) -> "Film":
        """A film of the input map of a layer: see `inputs`.

        Args:
            layer: a sparse layer, or a function that gives it, such as `lambda: model[0]`: `on_evolve` is asked for
                before the layer is there.
            shape: of the image, as for `inputs`.
            every: as for `Film`.
            most: the number at the top of the scale, which is the same for all frames; None takes the largest of the
                first frame and a quarter.
        """
        tops = [] if most is None else [most]

        def draw(axes: "Axes") -> None:
            found = layer if isinstance(layer, nn.Module) else layer()
            counts = input_counts(checked_layer("layer", found))
            if not tops:
                tops.append(1.25 * float(np.nanmax(as_image(counts.numpy(), shape))))
            inputs(counts, shape, axes, tops[0])

        return cls(draw, every)

    @classmethod
    def graph(cls, model: nn.Module, every: int = 1) -> "Film":
        """A film of a tiny network: see `graph`."""

        def draw(axes: "Axes") -> None:
            graph(model, axes)

        return cls(draw, every, size=(5.6, 3.6))

    def __call__(self, record: Record) -> None:
        """Draw a frame, if one is due at this evolution."""
        due = self._evolutions % self._every == 0
        self._evolutions += 1
        if due:
            self.take(f"after step {record.step:,}")

    def take(self, words: str) -> None:
        """Draw a frame now, such as one of the start before training.

        Args:
            words: stand behind its title.
        """
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=self.size, dpi=80, layout="constrained")
        canvas = FigureCanvasAgg(figure)
        axes = figure.subplots()
        self.draw(axes)
        axes.set_title(", ".join(filter(None, [axes.get_title(), words])), fontsize="medium")
        canvas.draw()  # type: ignore[no-untyped-call]
        self.frames.append(np.asarray(canvas.buffer_rgba())[..., :3].copy())  # type: ignore[no-untyped-call]
        if len(self.frames) > MOST:
            self.frames = self.frames[::2]
            self._every *= 2

    def save(self, path: str | Path, seconds: float = 4.0) -> Path:
        """Save the frames as a GIF that plays again and again.

        Args:
            path: of the file, which ends in .gif.
            seconds: how long it takes to the last frame, which stays for another second.
        Returns:
            path.
        Raises:
            ValueError: no frame was drawn yet, or the path ends otherwise.
        """
        from PIL import Image

        path = Path(path)
        if path.suffix.lower() != ".gif":
            raise ValueError(f"path must end in .gif, got {str(path)!r}.")
        check_number("seconds", seconds)
        if not seconds > 0:
            raise ValueError(f"seconds must be above 0, got {seconds}.")
        if not self.frames:
            raise ValueError("a film must have frames to be saved, got none. Pass it as on_evolve, and train.")
        every = max(1, -(-len(self.frames) * SHORTEST // seconds))
        kept = self.frames[:: -int(every)][::-1]  # the last is always among them
        sample = kept[:: -(-len(kept) // 12)] + kept[-1:]
        palette = Image.fromarray(np.concatenate(sample)).quantize(COLOURS)
        images = [Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE) for frame in kept]
        lengths = [max(10, round(1000 * seconds / len(kept) / 10) * 10)] * len(kept)
        lengths[-1] += int(1000 * LAST)
        images[0].save(path, save_all=True, append_images=images[1:], duration=lengths, loop=0, optimize=True)
        return path

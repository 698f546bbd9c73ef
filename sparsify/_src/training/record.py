"""`Record`: what one evolution did, and what it left: numbers that stay few however large the layers are."""

from typing import NamedTuple


class Spread(NamedTuple):
    """How numbers spread: the least, the quartiles (between two numbers by linear interpolation) and the most."""

    least: float
    lower: float
    median: float
    upper: float
    most: float


class LayerRecord(NamedTuple):
    """What an evolution did to one layer, and the layer afterwards.

    evolved: whether it evolved; what rests keeps topology and values.
    dropped, grown: connections; none where it rests.
    connections: it has now.
    density: connections as a share of all places of its matrix.
    target: the density at the end of training, which differs where an algorithm prunes.
    turnover: dropped connections as a share of those before.
    survived: of the connections that grew when it evolved the time before, the share that is there still: 0 where all
        were dropped again. None where none had grown, and after `reset_parameters`. It is counted over all of them
        up to 1024, else over 1024, which ones their hashes decide: an estimate within 0.031 nineteen times in twenty.
    explored: the share of places that were ever connections: in-time over-parametrization's R_s. An estimate of 1.6 %
        standard error, exact up to 4096 places.
    dead_inputs, dead_outputs: input and output units without any connection. Of a convolution: inputs of its matrix,
        which are taps of an input channel, and filters.
    fan_in, fan_out: connections of an output unit and of an input unit, as (least, lower quartile, median, upper
        quartile, most); their fields are `least`, `lower`, `median`, `upper` and `most`.
    magnitude: the same of the absolute values of its weights, grown ones included. Of more than 65,536 weights it is
        that of every second, third, ... in the order of the topology, so that no more are looked at. NaN where there
        is no connection; NaN and infinity where training has diverged.

    Example:
        >>> layer = SparseLinear(20, 10, density=0.2)
        >>> sgd = SparseOptimizer(torch.optim.SGD(layer.parameters(), lr=0.1), {"fc": layer}, SET(interval=1), seed=0)
        >>> layer(torch.randn(8, 20)).square().mean().backward()
        >>> sgd.step()
        >>> found = sgd.history[-1].layers["fc"]
        >>> found.connections, found.density, found.dropped == found.grown, found.survived
        (40, 0.2, True, None)
        >>> found.turnover == found.dropped / 40, found.fan_in.most <= 20
        (True, True)

    Source: of `explored`, Liu et al. 2021, "Do we actually need dense over-parameterization?" (arXiv:2102.02887).
    """

    evolved: bool
    dropped: int
    grown: int
    connections: int
    density: float
    target: float
    turnover: float
    survived: float | None
    explored: float
    dead_inputs: int
    dead_outputs: int
    fan_in: Spread
    fan_out: Spread
    magnitude: Spread


class Record(NamedTuple):
    """What one evolution did.

    step: after which optimizer step it came.
    drop_fraction: share of the connections that made room for new ones.
    density: of all sparse layers together, afterwards.
    layers: a `LayerRecord` of each sparse layer of the optimizer, by name.

    Example:
        >>> model = nn.Sequential(nn.Linear(20, 10), nn.ReLU(), nn.Linear(10, 10))
        >>> model, sgd = sparsify(model, torch.optim.SGD(model.parameters(), lr=0.1), 0.5, on_evolve=print)
        >>> record = sgd.evolve()  # doctest: +ELLIPSIS
        Record(step=0, drop_fraction=0.3, density=0.5, layers={'0': LayerRecord(evolved=True, dropped=...
        >>> record.grown == record.dropped, list(record.connections)
        (True, ['0', '2'])
    """

    step: int
    drop_fraction: float
    density: float
    layers: dict[str, LayerRecord]

    @property
    def dropped(self) -> dict[str, int]:
        """Connections that were dropped, by layer; of the layers that evolved."""
        return {name: layer.dropped for name, layer in self.layers.items() if layer.evolved}

    @property
    def grown(self) -> dict[str, int]:
        """Connections that grew, by layer; of the layers that evolved."""
        return {name: layer.grown for name, layer in self.layers.items() if layer.evolved}

    @property
    def connections(self) -> dict[str, int]:
        """Connections of every sparse layer, afterwards."""
        return {name: layer.connections for name, layer in self.layers.items()}

"""Records of evolutions, made by hand."""

from sparsify._src.training.record import LayerRecord, Record, Spread


def layer_record(turnover, survived, explored, fan_in=(1, 2, 3, 4, 5), fan_out=(10, 20, 30, 40, 50)):
    """A record that says this of a layer, and of the rest anything."""
    spreads = {"fan_in": Spread(*fan_in), "fan_out": Spread(*fan_out), "magnitude": Spread(0, 0, 0, 0, 0)}
    shares = {"turnover": turnover, "survived": survived, "explored": explored}
    counts = {"dropped": 3, "grown": 3, "connections": 10, "dead_inputs": 0, "dead_outputs": 0}
    return LayerRecord(evolved=True, density=0.1, target=0.1, **counts, **shares, **spreads)


def record(step, **layers):
    return Record(step, 0.3, 0.1, layers)


def history():
    """Three evolutions of two layers, of which "b" only evolves at the last two."""
    return [
        record(10, a=layer_record(0.3, None, 0.1)),
        record(20, a=layer_record(0.2, 0.5, 0.15, (0, 2, 4, 6, 8)), b=layer_record(0.3, None, 0.4)),
        record(30, a=layer_record(0.1, 0.75, 0.175), b=layer_record(0.2, 0.25, 0.5)),
    ]

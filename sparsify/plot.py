"""Pictures of sparse networks and their training, drawn by matplotlib: `pip install "sparsify-torch[plot]"`.

Each function draws into the axes it is given, or makes new ones, and returns them: `axes.figure.savefig("inputs.png")`
saves what it has drawn, and `matplotlib.pyplot.show()` shows it.
"""

from sparsify._src.pictures.counting import input_counts
from sparsify._src.pictures.film import Film
from sparsify._src.pictures.graph import graph
from sparsify._src.pictures.of_evolutions import degrees, explored, turnover
from sparsify._src.pictures.of_layers import inputs, topology, weights
from sparsify._src.pictures.of_results import accuracy, speed
from sparsify._src.pictures.of_training import epochs, loss

__all__ = [
    "Film",
    "accuracy",
    "degrees",
    "epochs",
    "explored",
    "graph",
    "input_counts",
    "inputs",
    "loss",
    "speed",
    "topology",
    "turnover",
    "weights",
]

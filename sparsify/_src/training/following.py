"""`follow`: the user says that an average evolves with a model, where sparsify cannot see it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sparsify._src import topology
from sparsify._src.layers import averaging, copies, registry
from sparsify._src.layers.matrix import SparseMatrix
from sparsify._src.native import library
from sparsify._src.swap import LOCK, Change, Swap
from sparsify._src.topology import Digest
from sparsify._src.vectors import has_numbers

Averages = nn.Module | Mapping[str, Tensor] | Sequence[Tensor]
"""What `follow` takes."""

AGAIN = "Call follow(average, model) when both are loaded, or begin the average anew."


def follow(average: Averages, model: nn.Module) -> None:
    """Have `average`, which holds averages of the weights of `model`, evolve with the model from now on.

    Copies made with copy.deepcopy or AveragedModel, and models that have loaded the model's state dict, need no such
    call. It is for what cannot be seen: averages that are kept by parameter name or in a list, and target networks that
    got their weights in another way. When the topology of a layer evolves, or is trimmed, its averages are moved at the
    same moment: those of surviving connections are kept, and those of new ones begin with the connection.

    Args:
        average: a module with the same sparse layers, of the same topologies; or a mapping of parameter names to
            tensors, such as an EMA's `shadow`; or a sequence of tensors in the order of `model.parameters()` (all, or
            those that require gradients), such as the `shadow_params` of torch_ema. A mapping or list may get other
            tensors later, under the same names and places. Tensors that belong to no sparse layer are left alone.
        model: the one that is trained.
    Raises:
        ValueError: the model has no sparse layers, or `average` does not fit it. Nothing is changed.
        TypeError: `average` is of another kind. Nothing is changed.
    Example:
        >>> model = nn.Sequential(nn.Linear(20, 10))
        >>> sgd = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> model, sgd = sparsify(model, sgd, density=0.2, evolution=SET(interval=2))
        >>> shadow = {name: p.detach().clone() for name, p in model.named_parameters()}
        >>> follow(shadow, model)
        >>> for _ in range(4):
        ...     sgd.zero_grad()
        ...     model(torch.randn(8, 20)).square().mean().backward()
        ...     sgd.step()  # evolves at the second and the fourth step, and shadow with it
        ...     for name, p in model.named_parameters():
        ...         _ = shadow[name].lerp_(p.detach(), 0.001)
        >>> shadow["0.values"].shape == model[0].values.shape, len(sgd.history)
        (True, 2)
    """
    layers = _layers(model)
    if not layers:
        raise ValueError("model must hold a sparse layer, got none. Make it sparse first: sparsify(model, ...).")
    if isinstance(average, nn.Module):
        pairs = list(_pairs(average, layers))
        with LOCK:
            for copy, layer in pairs:
                copies.follows(copy, layer)
        return
    if isinstance(average, Mapping):
        kept = dict(_by_name(average, layers))
    elif isinstance(average, Sequence) and not isinstance(average, str):
        kept = dict(_by_place(average, model, layers))
    else:
        raise TypeError(
            "average must be a module, a mapping of parameter names to tensors, or a sequence of tensors, got "
            f"{type(average).__name__}. Pass what it keeps them in, such as ema.shadow or ema.shadow_params."
        )
    of_layers = {id(each._parameters.get("values")) for each in registry.layers()}
    for name, tensors in kept.items():
        tensors.check(name, layers[name])
        if id(tensors.values) in of_layers:
            raise ValueError(
                f"average must hold tensors of its own, got the values of a sparse layer for {name!r}. Pass the module "
                "that they belong to."
            )
    with LOCK:
        for name, tensors in kept.items():
            averaging.add_loose(layers[name], tensors, tensors.is_same)


@dataclass
class _Tensors:
    """An average of a layer's values in a mapping or sequence: whichever tensor is there.

    home, key: `home[key]` is the tensor.
    digest: of the topology that it belongs to.
    """

    home: Any
    key: Any
    digest: Digest
    swap: Swap | None = None

    @property
    def values(self) -> Tensor:
        """One for each connection."""
        tensor: Tensor = self.home[self.key]
        return tensor

    def is_same(self, other: object) -> bool:
        """Whether another is in the same place."""
        return isinstance(other, _Tensors) and other.home is self.home and other.key == self.key

    def is_of(self, name: str, layer: SparseMatrix) -> bool:
        """Whether it is there still. Raise RuntimeError where it does not fit `layer`."""
        try:
            self.values  # noqa: B018
        except LookupError:
            return False
        try:
            self.check(name, layer)
        except (TypeError, ValueError) as error:
            raise RuntimeError(str(error)) from None
        return True

    def check(self, name: str, layer: SparseMatrix) -> None:
        """Raise ValueError or TypeError unless it holds averages of the values of `layer`."""
        tensor: object = self.values
        if not isinstance(tensor, Tensor):
            raise TypeError(f"average must hold tensors, got {type(tensor).__name__} for the values of layer {name!r}.")
        if not has_numbers(tensor) or not tensor.is_floating_point() or len(tensor) != layer.nnz:
            raise ValueError(
                f"average must have one number for each of the {layer.nnz} connections of layer {name!r}, got "
                f"{tensor.dtype} {tuple(tensor.shape)} on {tensor.device}. {AGAIN}"
            )
        if self.digest != layer.digest:
            raise ValueError(
                f"average must be of the connections of layer {name!r}, got it of a topology that was replaced since. "
                f"{AGAIN}"
            )

    @torch.no_grad()
    def prepare_topology(self, flat: Tensor, values: Tensor, grad: Tensor | None) -> Change:
        """Prepare to take over a topology with the values that belong to it."""
        return partial(self._replace, self.values, values.detach().contiguous(), topology.digest(flat))

    def _replace(self, tensor: Tensor, values: Tensor, digest: Digest) -> None:
        library.overwrite(tensor, values)
        self.digest = digest


def _layers(model: nn.Module) -> dict[str, SparseMatrix]:
    return {name: module for name, module in model.named_modules() if isinstance(module, SparseMatrix)}


def _pairs(average: nn.Module, layers: Mapping[str, SparseMatrix]) -> Iterator[tuple[SparseMatrix, SparseMatrix]]:
    theirs = list(_layers(average).values())
    shapes = [layer.shape for layer in layers.values()]
    if [layer.shape for layer in theirs] != shapes:
        raise ValueError(
            f"average must have the sparse layers of the model, of {shapes}, got {[layer.shape for layer in theirs]}. "
            "Make it with copy.deepcopy(model), or sparsify(average, None, start=model.state_dict())."
        )
    trained = registry.trained()
    for copy, (name, layer) in zip(theirs, layers.items(), strict=True):
        if copy is layer:
            raise ValueError(f"average must have layers of its own, got layer {name!r} of the model itself.")
        if copy in trained:
            raise ValueError(
                f"average must not be trained itself, got one whose layer {name!r} an optimizer evolves. Make it with "
                "sparsify(average, None, ...)."
            )
        if copy.digest != layer.digest:
            raise ValueError(
                f"average must have the topology of the model, got another in layer {name!r}. Call "
                "average.load_state_dict(model.state_dict()) first."
            )
        yield copy, layer


def _by_name(average: Mapping[str, Tensor], layers: Mapping[str, SparseMatrix]) -> Iterator[tuple[str, _Tensors]]:
    if any(str(key).split(".")[-1] in ("crow", "col") for key in average):
        raise ValueError(
            "average must hold averages of parameters, got a state dict with indices. Pass the module that it is of."
        )
    for name, layer in layers.items():
        key = f"{name}.values" if name else "values"
        if key in average:
            yield name, _Tensors(average, key, layer.digest)
        elif layer.values.requires_grad:
            raise ValueError(
                f"average must hold {key!r}, as model.named_parameters() does, got {list(average)[:5]}. Pass the model "
                "whose parameters have these names."
            )


def _by_place(
    average: Sequence[Tensor], model: nn.Module, layers: Mapping[str, SparseMatrix]
) -> Iterator[tuple[str, _Tensors]]:
    parameters = list(model.parameters())
    if len(average) != len(parameters):
        parameters = [p for p in parameters if p.requires_grad]
    if len(average) != len(parameters):
        raise ValueError(
            f"average must have a tensor for each of the {len(parameters)} parameters of the model, got {len(average)}."
        )
    places = {id(p): place for place, p in enumerate(parameters)}
    for name, layer in layers.items():
        if id(layer.values) in places:
            yield name, _Tensors(average, places[id(layer.values)], layer.digest)

"""Lets torch.fx keep a sparse layer whole: one node of the graph, as it does with torch's own layers."""

from typing import Any

from torch import nn
from torch.fx import Proxy

from sparsify._src.torch_private import has_forward_hooks


def as_leaf(layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """The node that calls `layer` in the graph that torch.fx is tracing. One of the arguments is a Proxy.

    The graph calls the layer itself, and so follows its evolutions.

    Raises:
        ValueError: the layer is all there is to trace.
    """
    tracer = next(value.tracer for value in (*args, *kwargs.values()) if isinstance(value, Proxy))
    path = tracer.path_of_module(layer)  # type: ignore[attr-defined]
    if not path:
        raise ValueError(
            f"root must contain the layer that torch.fx is to keep whole, got the {type(layer).__name__} itself. Trace "
            "nn.Sequential(layer)."
        )
    if has_forward_hooks(layer):  # are in the graph already
        module = tracer.create_proxy("get_attr", path, (), {})
        return tracer.create_proxy("call_method", "forward", (module, *args), kwargs)
    return tracer.create_proxy("call_module", path, args, kwargs)

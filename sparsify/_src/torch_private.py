"""PyTorch's private names: all that sparsify uses, what each is for, and what happens where a release has it no more.

What is resolved by `_of_torch` is missed when sparsify is imported, with an ImportError that names it. The other
functions are missed where they are called: the tests that are named there fail first.

`_parameters`, `_buffers` and `_modules` of nn.Module are not here: subclasses rely on them, and they are as old as
nn.Module.
"""

import sys
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch._decomp import register_decomposition
from torch.autograd import forward_ad
from torch.nn.parallel import DistributedDataParallel
from torch.optim import LBFGS


def _of_torch(path: str) -> Any:
    found: Any = torch
    for name in path.split("."):
        if not hasattr(found, name):
            raise ImportError(
                f"torch must have torch.{path}, got torch {torch.__version__} without it. Install a release that "
                "docs/compatibility.md names, and report this."
            )
        found = getattr(found, name)
    return found


# What a tensor is: memory, or something that stands for it (traced, fake, functional, to be negated when it is read).
dispatch_keys = _of_torch("_C._dispatch_keys")
DispatchKey = _of_torch("_C.DispatchKey")
DispatchKeySet = _of_torch("_C.DispatchKeySet")

is_batched = _of_torch("_C._functorch.is_legacy_batchedtensor")
"""Whether a gradient is one of many at once: torch.autograd.grad(is_grads_batched=True) has a vmap of its own."""

# What is at work around a call: TorchDispatchMode, torch.jit.trace, torch.func.
dispatch_modes = _of_torch("_C._len_torch_dispatch_stack")
tracing_state = _of_torch("_C._get_tracing_state")
transforms = _of_torch("_C._functorch.peek_interpreter_stack")
TransformType = _of_torch("_C._functorch.TransformType")

unwrapped = _of_torch("_C._functorch.unwrap_if_dead")
"""A tensor out of what torch.func wrapped around it, where that is over."""


def applier(function: type[torch.autograd.Function]) -> Any:
    """The `apply` of an autograd function, for tensors that are `unwrapped`, where torch.func is not at work.

    PyTorch's own asks for both in Python, which takes as long as all that a layer asks.
    """
    return super(torch.autograd.Function, function).apply  # type: ignore[misc]


# Forward-mode differentiation, which PyTorch's operators of Python would drop in silence.
is_forward_enabled = _of_torch("_C._is_fwd_grad_enabled")
excluding_key = _of_torch("_C._SetExcludeDispatchKeyGuard")
_of_torch("autograd.forward_ad._current_level")

# Which backward pass is under way, and whether it is for a certain gradient.
graph_task = _of_torch("_C._current_graph_task_id")
will_execute = _of_torch("_C._will_engine_execute_node")

__all__ = ["register_decomposition"]
"""Tells exporters that know no other operators than ATen's what ours is made of."""


def keep_whole(operator: object) -> None:
    """Have Inductor call an operator as it is, though it has a decomposition.

    It would do so anyway, but where the environment has `CI` it refuses: that is meant for PyTorch's own operators.
    To be called when Inductor is tracing; where it is not loaded, nobody asks.
    """
    inductor = sys.modules.get("torch._inductor.lowering")
    if inductor is not None and operator not in inductor.lowerings:
        inductor.make_fallback(operator, inductor.constrain_to_fx_strides, warn=False, override_decomp=True)


def forward_level() -> int:
    """How deep forward-mode differentiation is; below 0 where there is none."""
    return forward_ad._current_level


def version(tensor: Tensor) -> int:
    """How often PyTorch has written to a tensor; one that was made in inference mode does not know: -1."""
    return -1 if tensor.is_inference() else tensor._version


def writes(one: Tensor, two: Tensor, three: Tensor, four: Tensor, five: Tensor) -> int:
    """How often PyTorch has written to these tensors, -1 as above. One call for five: it comes with every product."""
    try:
        return one._version + two._version + three._version + four._version + five._version
    except RuntimeError:
        return -1


def has_hooks(parameter: Tensor) -> bool:
    """Whether hooks of the user's wait for the gradient of a parameter, which would be lost with it."""
    return bool(parameter._backward_hooks or parameter._post_accumulate_grad_hooks)


def has_forward_hooks(module: nn.Module) -> bool:
    """Whether torch.fx has traced hooks of a module before it asks the module."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def loading_hooks(module: nn.Module) -> Collection[Any]:
    """What `register_load_state_dict_pre_hook` was given: so that ours is registered once."""
    return module._load_state_dict_pre_hooks.values()


def rebind_loading_hooks(new: nn.Module, old: nn.Module) -> None:
    """Have the hooks of loading that `new` has taken over from `old`, and that get their module, get `new`."""
    hooks: Any = new._load_state_dict_pre_hooks
    for key, hook in hooks.items():
        if getattr(hook, "with_module", False) and hook.module() is old:
            hooks[key] = type(hook)(hook.hook, new)


def step_hooks(optimizer: object) -> Mapping[int, Any] | None:
    """What `register_step_post_hook` was given; None where Optimizer.__init__ was not called."""
    return getattr(optimizer, "_optimizer_step_post_hooks", None)


def calls_hooks(optimizer: object) -> bool:
    """Whether the optimizer's `step` calls step hooks, as Optimizer.__init__ sees to."""
    return hasattr(getattr(type(optimizer), "step", None), "hooked") and step_hooks(optimizer) is not None


LBFGS_SIZE = "_numel_cache"
"""Where LBFGS keeps how many numbers it trains."""


def forget_size(optimizer: LBFGS) -> None:
    """Have LBFGS count its numbers anew."""
    setattr(optimizer, LBFGS_SIZE, None)


def find_parameters(optimizer: LBFGS) -> None:
    """PyTorch leaves out what LBFGS keeps beside its param groups, when it copies or pickles one."""
    optimizer._params = optimizer.param_groups[0]["params"]
    forget_size(optimizer)


def sent_by(ddp: DistributedDataParallel) -> Collection[Tensor]:
    """The parameters whose gradients DDP sends: tests/test_distributed.py."""
    sent: Collection[Tensor] = ddp._module_parameters
    return sent


def choose_buffers_anew(ddp: DistributedDataParallel) -> None:
    """Have DDP see that `parameters_to_ignore` has changed: it chooses the buffers that it sends once."""
    ddp._assign_modules_buffers()  # type: ignore[no-untyped-call]

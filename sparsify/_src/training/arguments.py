"""Checks the arguments of a `SparseOptimizer`, before anything is changed."""

from torch.optim import Optimizer

from sparsify._src.evolution.evolution import Evolution
from sparsify._src.torch_private import step_hooks
from sparsify._src.training import holders
from sparsify._src.training.steps import is_of_a_trainer, tells_of_steps


def is_wrapped(optimizer: object) -> bool:
    """Whether `optimizer` is a SparseOptimizer."""
    return hasattr(optimizer, "_self_evolver")


def check_arguments(optimizer: object, evolution: object, grown_state: object, seed: object) -> None:
    """Raise unless these can make a SparseOptimizer."""
    if is_wrapped(optimizer):
        raise TypeError("optimizer must not be wrapped already, got a SparseOptimizer. Pass the original optimizer.")
    inside = holders.optimizers(optimizer)
    if not isinstance(optimizer, Optimizer) and len(inside) < 2:
        raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}.")
    if is_of_a_trainer(optimizer):
        raise TypeError(
            f"optimizer must be the original one, got {type(optimizer).__name__}, a trainer's. Call sparsify() before "
            "the trainer wraps it."
        )
    for each in inside:
        hooks = step_hooks(each) or {}
        if is_wrapped(each) or any(hasattr(hook, "of_sparsify") for hook in hooks.values()):
            raise TypeError(
                "optimizer must not be wrapped already, got one that sparsify() wrapped. Use what it returned."
            )
    if not any(map(tells_of_steps, inside)):
        raise TypeError(
            f"optimizer must tell of its steps, got {type(optimizer).__name__}, which calls no step hooks, and "
            "holds no torch.optim.Optimizer that does. Call Optimizer.__init__ in its constructor."
        )
    check_options(evolution, grown_state, seed)


def check_options(evolution: object, grown_state: object, seed: object) -> None:
    """Raise unless these are options of a SparseOptimizer."""
    if not isinstance(evolution, Evolution):
        raise TypeError(f"evolution must be an Evolution such as SET() or Static(), got {evolution!r}.")
    if grown_state not in ("zero", "mean"):
        raise ValueError(f'grown_state must be "zero" or "mean", got {grown_state!r}.')
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
        raise TypeError(f"seed must be an int or None, got {seed!r}.")

"""Ranks of distributed training: which there are, how they exchange data, and what DDP need not send."""

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakSet

import torch
from torch import Tensor
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from sparsify._src.topology import Indices
from sparsify._src.torch_private import choose_buffers_anew, sent_by

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


WORLD: Final = "world"
"""In place of a process group: the default one, as soon as there is one."""

SHARDED = (
    "FSDP leaves each rank a part of the connections, and evolution compares all of a layer's. "
    "Use DistributedDataParallel: gradients and optimizer state are small, because the layers are sparse."
)
"""Why a model cannot be sharded."""


class Ranks:
    """The processes that train replicas of one model, this one among them.

    Args:
        group: of these processes; `WORLD` for the default one, looked up whenever it is needed, because it may be
            initialised later than this; None where this process trains alone.
    Attributes:
        met: whether the ranks have found that they begin alike.
    """

    def __init__(self, group: "ProcessGroup | str | None" = WORLD) -> None:
        known = group is None or group == WORLD
        if not known and not (dist.is_available() and isinstance(group, dist.ProcessGroup)):
            raise TypeError(f"process_group must be a group that this process is in, or None, got {group!r}.")
        self._given = group
        self.met = False

    @property
    def group(self) -> "ProcessGroup | None":
        """The group; None where this process is alone."""
        group = self._given
        if group == WORLD:
            group = dist.group.WORLD if dist.is_available() and dist.is_initialized() else None
        return None if group is None or group.size() < 2 else group  # type: ignore[union-attr, return-value]

    def gather(self, own: Any, device: torch.device) -> list[Any]:
        """What each rank says, in the order of ranks.

        Args:
            own: what this one says.
            device: the model's.
        """
        group = self.group
        if group is None:
            return [own]
        everyone = [own] * group.size()
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():  # NCCL uses the current one
            dist.all_gather_object(everyone, own, group=group)
        return everyone

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of all ranks' tensors, in place."""
        if (group := self.group) is not None:
            dist.all_reduce(tensor, group=group)
        return tensor

    def __deepcopy__(self, memo: dict[int, Any]) -> "Ranks":
        return Ranks(self._given)  # groups cannot be copied

    def __reduce__(self) -> tuple[type["Ranks"], tuple[str | None]]:
        return Ranks, (None if self._given is None else WORLD,)  # nor pickled


_relieved: WeakSet[DistributedDataParallel] = WeakSet()


def leave_indices(ddp: DistributedDataParallel) -> None:
    """Have `ddp` send no indices of sparse layers from its next forward pass on; called in its first.

    With its default broadcast_buffers=True it sends every buffer before every forward pass. Indices are equal on all
    ranks already, and would be several times as many bytes as the gradients.

    Raises:
        RuntimeError: `ddp` is older than a sparse layer in it, and would not send its gradient.
    """
    if ddp in _relieved:
        return
    modules = ddp.module.named_modules(remove_duplicate=False)
    layers = {name: module for name, module in modules if module._buffers.keys() >= set(Indices._fields)}
    sent = {id(parameter) for parameter in sent_by(ddp)}
    for name, layer in layers.items():
        values, key = layer.get_parameter("values"), f"{name}.values".lstrip(".")
        if values.requires_grad and id(values) not in sent and key not in ddp.parameters_to_ignore:
            raise RuntimeError(
                f"model must be wrapped in DistributedDataParallel after sparsify(), got layer {name!r} in one wrapped "
                "before. (Lightning wraps between configure_model and configure_optimizers.)"
            )
    ddp.parameters_to_ignore |= {f"{name}.{index}".lstrip(".") for name in layers for index in Indices._fields}
    _relieved.add(ddp)
    choose_buffers_anew(ddp)


def is_first() -> bool:
    """Whether this process is rank 0 of all, or alone."""
    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0

"""`SparseMultiheadAttention`: an nn.MultiheadAttention whose projections are layers of their own."""

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Proxy
from torch.nn import functional as F

from sparsify._src.kernels.operands import is_traced
from sparsify._src.layers.adoption import adopt
from sparsify._src.layers.linear import SparseLinear
from sparsify._src.layers.tracing import as_leaf
from sparsify._src.swap import Swap

Projection = SparseLinear | nn.Linear

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")


class SparseMultiheadAttention(nn.Module):
    """Attention over heads, as nn.MultiheadAttention computes it, with sparse projections.

    It is called as nn.MultiheadAttention is, and gives the results of its dense equivalent. Packed there or not, the
    projections of query, key and value are three layers here. `sparsify` makes it; hooks, train/eval flag and
    attributes of the user's survive. A dense checkpoint of the module loads at the topology that is there.

    Args:
        attention: the module whose place this takes. It is left as it was; `bias_k` and `bias_v` are shared with it.
        projections: "q_proj", "k_proj", "v_proj" and "out_proj": each a SparseLinear, or an nn.Linear left dense.

    Shape:
        query (L, N, embed_dim), key (S, N, kdim), value (S, N, vdim) -> output (L, N, embed_dim), and weights
        (N, L, S) or, not averaged, (N, num_heads, L, S). With `batch_first` N comes first; it may be left out.
    Example:
        >>> model, _ = sparsify(nn.Sequential(nn.MultiheadAttention(16, num_heads=2)), None, density=0.25)
        >>> type(model[0]).__name__, model[0].q_proj.nnz
        ('SparseMultiheadAttention', 64)
    """

    embed_dim: int
    kdim: int
    vdim: int
    num_heads: int
    head_dim: int
    dropout: float
    batch_first: bool
    add_zero_attn: bool
    q_proj: Projection
    k_proj: Projection
    v_proj: Projection
    out_proj: Projection
    bias_k: nn.Parameter | None
    bias_v: nn.Parameter | None

    in_proj_bias = None  # what nn.TransformerEncoderLayer looks for: without it, it calls this module in eval too

    def __init__(self, attention: nn.MultiheadAttention, projections: Mapping[str, Projection]) -> None:
        super().__init__()
        adopt(self, attention)
        for name in PROJECTIONS:
            self.add_module(name, projection := projections[name])
            if isinstance(projection, SparseLinear):
                projection.zero_bias = True
        for name in "bias_k", "bias_v":
            self.__dict__.pop(name, None)  # nn.MultiheadAttention has None for an attribute where it has no parameter
            self.register_parameter(name, getattr(attention, name))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Start anew: each projection as its own `reset_parameters` does, and biases as nn.MultiheadAttention does.

        The values of sparse projections are uniform in ±1/sqrt(mean sparse fan-in), their biases zero, also where they
        are reset by themselves; `bias_k` and `bias_v` are normal (Xavier).

        Raises:
            ValueError: as `SparseLinear.reset_parameters`. Nothing is changed.
        """
        projections = self.q_proj, self.k_proj, self.v_proj, self.out_proj
        sparse = [projection for projection in projections if isinstance(projection, SparseLinear)]
        swap = Swap([change for projection in sparse for change in projection.prepare_reset()], sparse)
        for projection in projections:
            if not isinstance(projection, SparseLinear):
                projection.reset_parameters()
        swap.commit()
        self.reset_own_biases()

    def reset_own_biases(self) -> None:
        """Initialise the biases alone, as nn.MultiheadAttention does."""
        for projection in self.q_proj, self.k_proj, self.v_proj, self.out_proj:
            if projection.bias is not None:
                nn.init.zeros_(projection.bias)
        for bias in self.bias_k, self.bias_v:
            if bias is not None:
                nn.init.xavier_normal_(bias)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend: arguments and results are those of nn.MultiheadAttention.

        Returns:
            the output, and the attention weights, None unless `need_weights`.
        Raises:
            ValueError, TypeError: a shape, a mask's dtype or a nested tensor that nn.MultiheadAttention refuses too.
        """
        if any(isinstance(x, Proxy) for x in (query, key, value)):
            options = key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal
            return as_leaf(self, query, key, value, *options)  # type: ignore[no-any-return]
        batched = _is_batched(query, key, value)
        if not batched:
            query, key, value = query.unsqueeze(0), key.unsqueeze(0), value.unsqueeze(0)
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        batch_first = self.batch_first or not batched
        q = self._by_head(self.q_proj(query), batch_first)
        k = self._by_head(self.k_proj(key), batch_first)
        v = self._by_head(self.v_proj(value), batch_first)
        if is_causal and attn_mask is None:
            raise ValueError("attn_mask must be given where is_causal says that it is causal, got None.")
        causal = is_causal and key_padding_mask is None and not need_weights
        sizes = q.shape[0], q.shape[2], k.shape[2]  # not len(q), which would fix the batch size of an exported program
        mask = None if causal else self._mask(attn_mask, key_padding_mask, query.dtype, sizes)
        if self.bias_k is not None and self.bias_v is not None:
            of_bias = (self._by_head(bias, True).expand(q.shape[0], -1, -1, -1) for bias in (self.bias_k, self.bias_v))
            k, v = (torch.cat([one, other], dim=2) for one, other in zip((k, v), of_bias, strict=True))
        if self.add_zero_attn:
            k, v = F.pad(k, (0, 0, 0, 1)), F.pad(v, (0, 0, 0, 1))
        if mask is not None:  # what was added may be attended to
            mask = F.pad(mask, (0, k.shape[2] - mask.shape[3]))

        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = (q * math.sqrt(1 / self.head_dim)) @ k.transpose(2, 3)
            weights = F.dropout((scores if mask is None else scores + mask.to(scores.dtype)).softmax(-1), dropout)
            heads = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            heads = F.scaled_dot_product_attention(q, k, v, mask, dropout, causal)
        joined = heads.transpose(1, 2) if batch_first else heads.permute(2, 0, 1, 3)
        output = self.out_proj(joined.flatten(2))
        if batched:
            return output, weights
        return output.squeeze(0), None if weights is None else weights.squeeze(0)

    def _by_head(self, x: Tensor, batch_first: bool) -> Tensor:
        """(N, L, embed_dim), or (L, N, embed_dim), as (N, num_heads, L, head_dim)."""
        split = x.view(*x.shape[:2], self.num_heads, self.head_dim)
        return split.transpose(1, 2) if batch_first else split.permute(1, 2, 0, 3)

    def _mask(
        self,
        attn_mask: Tensor | None,
        key_padding_mask: Tensor | None,
        dtype: torch.dtype,
        sizes: tuple[int, int, int],
    ) -> Tensor | None:
        """Both masks as one that is added to the scores, (N or 1, num_heads or 1, L or 1, S)."""
        batch, length, keys = sizes
        total = None
        checks = not is_traced()
        if attn_mask is not None:
            per_head = batch * self.num_heads, length, keys
            if checks and tuple(attn_mask.shape) not in (per_head, per_head[1:]):
                raise ValueError(f"attn_mask must be {per_head[1:]} or {per_head}, got {tuple(attn_mask.shape)}.")
            total = _additive(attn_mask, "attn_mask", dtype)
            total = total.view(batch, self.num_heads, length, keys) if total.dim() == 3 else total[None, None]
        if key_padding_mask is not None:
            if checks and tuple(key_padding_mask.shape) != (batch, keys):
                raise ValueError(f"key_padding_mask must be {(batch, keys)}, got {tuple(key_padding_mask.shape)}.")
            padding = _additive(key_padding_mask, "key_padding_mask", dtype)[:, None, None]
            total = padding if total is None else total + padding
        return total

    def to_attention(self) -> nn.MultiheadAttention:
        """A dense nn.MultiheadAttention that computes the same; its parameters are copies."""
        q_proj, k_proj, v_proj, out_proj = map(_dense, (self.q_proj, self.k_proj, self.v_proj, self.out_proj))
        attention = nn.MultiheadAttention(
            self.embed_dim,
            self.num_heads,
            bias=out_proj.bias is not None,
            add_bias_kv=self.bias_k is not None,
            kdim=self.kdim,
            vdim=self.vdim,
            device="meta",
            dtype=out_proj.weight.dtype,
        )
        if attention.in_proj_weight is not None:
            attention.in_proj_weight = _joined(q_proj.weight, k_proj.weight, v_proj.weight)
        else:
            attention.q_proj_weight, attention.k_proj_weight = q_proj.weight, k_proj.weight
            attention.v_proj_weight = v_proj.weight
        if attention.in_proj_bias is not None:
            attention.in_proj_bias = _joined(q_proj.bias, k_proj.bias, v_proj.bias)
        attention.out_proj.weight, attention.out_proj.bias = out_proj.weight, out_proj.bias
        attention.bias_k, attention.bias_v = copy.deepcopy((self.bias_k, self.bias_v))
        adopt(attention, self)
        return attention

    def unpack(self, state_dict: dict[str, Any], prefix: str) -> None:
        """Give what a dense checkpoint has under nn.MultiheadAttention's names the names of the projections."""
        for part in "weight", "bias":
            packed = state_dict.pop(f"{prefix}in_proj_{part}", None)
            for number, name in enumerate(PROJECTIONS[:3]):
                found = state_dict.pop(f"{prefix}{name}_{part}", None)
                if packed is not None:
                    found = packed.tensor_split(3)[number] if isinstance(packed, Tensor) and packed.dim() else packed
                if found is not None:
                    state_dict[f"{prefix}{name}.{part}"] = found

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        self.unpack(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *rest)


def _dense(projection: Projection) -> nn.Linear:
    return projection.to_linear() if isinstance(projection, SparseLinear) else copy.deepcopy(projection)


def _joined(*parts: Tensor) -> nn.Parameter:
    return nn.Parameter(torch.cat([part.detach() for part in parts]), any(part.requires_grad for part in parts))


def _is_batched(query: Tensor, key: Tensor, value: Tensor) -> bool:
    if query.is_nested or key.is_nested or value.is_nested:
        raise TypeError("query, key and value must be padded tensors, got a nested one. Use key_padding_mask.")
    dims = query.dim(), key.dim(), value.dim()
    if dims not in ((2, 2, 2), (3, 3, 3)):
        raise ValueError(f"query, key and value must all be 2-D or all 3-D, got {dims}.")
    return dims[0] == 3


def _additive(mask: Tensor, name: str, dtype: torch.dtype) -> Tensor:
    """A mask that is added to the scores; a boolean one says True where not to attend."""
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, -math.inf)
    if not mask.is_floating_point():
        raise TypeError(f"{name} must be boolean or floating-point, got {mask.dtype}.")
    return mask

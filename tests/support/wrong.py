"""What is none of the tensors of a checkpoint, made of one that is."""

import torch

WRONG = {
    "None": lambda t: None,
    "a word": lambda t: "no",
    "a list": lambda t: t.tolist(),
    "sparse": lambda t: t.to_sparse(),
    "meta": lambda t: t.to("meta"),
    "complex": lambda t: t.to(torch.complex64),
    "bool": lambda t: t.bool(),
    "a row": lambda t: t[None],
    "a scalar": lambda t: t[0],
    "shorter": lambda t: t[:-1],
    "longer": lambda t: torch.cat([t, t[-1:]]),
    "empty": lambda t: t[:0],
}

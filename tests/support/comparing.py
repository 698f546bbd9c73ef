"""What a model and its optimizer hold, and whether two such are the same."""

import torch


def snapshot(model, optimizer):
    """All that a failed call could have changed, by identity and by value."""
    return (
        [(name, id(module)) for name, module in model.named_modules()],
        [(name, id(p), p.detach().clone()) for name, p in model.named_parameters()],
        [[id(p) for p in group["params"]] for group in optimizer.param_groups],
        [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups],
        {id(p): {k: v.clone() if torch.is_tensor(v) else v for k, v in s.items()} for p, s in optimizer.state.items()},
        (len(optimizer._optimizer_step_pre_hooks), len(optimizer._optimizer_step_post_hooks)),
    )


def assert_same(first, second):
    """Equal to the last bit, through nested lists, tuples and dicts."""
    assert type(first) is type(second)
    if torch.is_tensor(first):
        assert torch.equal(first, second)
    elif isinstance(first, dict):
        assert first.keys() == second.keys()
        for key in first:
            assert_same(first[key], second[key])
    elif isinstance(first, (list, tuple)):
        assert len(first) == len(second)
        for one, other in zip(first, second, strict=True):
            assert_same(one, other)
    else:
        assert first == second

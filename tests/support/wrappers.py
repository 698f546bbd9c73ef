"""Optimizers that hold an optimizer, as people have them in their own code."""

from collections import defaultdict

import torch
from torch.optim import Optimizer


class SAM(Optimizer):
    """Sharpness-aware minimization, as in the most used implementation (davda54/sam)."""

    def __init__(self, params, base, rho=0.05, **options):
        super().__init__(params, {"rho": rho, **options})
        self.base_optimizer = base(self.param_groups, **options)
        self.param_groups = self.base_optimizer.param_groups
        self.defaults.update(self.base_optimizer.defaults)

    @torch.no_grad()
    def first_step(self, zero_grad=False):
        grads = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.stack([grad.norm() for grad in grads]).norm()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self.state[p]["old_p"] = p.data.clone()
                    p.add_(p.grad * group["rho"] / (norm + 1e-12))
        if zero_grad:
            self.zero_grad()

    @torch.no_grad()
    def second_step(self, zero_grad=False):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.data = self.state[p]["old_p"]
        self.base_optimizer.step()
        if zero_grad:
            self.zero_grad()

    @torch.no_grad()
    def step(self, closure=None):
        closure = torch.enable_grad()(closure)
        loss = closure()
        self.first_step(zero_grad=True)
        closure()
        self.second_step()
        return loss

    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict)
        self.base_optimizer.param_groups = self.param_groups


class TwoCalls(SAM):
    """SAM, stepped in two calls."""

    def step(self, closure=None):
        raise AssertionError("first_step() and second_step() are called instead")


class Lookahead(Optimizer):
    """Without Optimizer.__init__ (alphadl/lookahead.pytorch): it calls no hooks, and has a state of its own."""

    def __init__(self, optimizer, k=3, alpha=0.5):
        self.optimizer, self.k, self.alpha = optimizer, k, alpha
        self.param_groups = optimizer.param_groups
        self.state = defaultdict(dict)
        self.fast_state = optimizer.state
        self.steps = 0

    @torch.no_grad()
    def step(self, closure=None):
        loss = self.optimizer.step(closure)
        self.steps += 1
        for number, group in enumerate(self.param_groups):
            for place, fast in enumerate(group["params"]):
                slow = self.slow_of(number, place, fast)
                if self.steps % self.k == 0:
                    slow += (fast - slow) * self.alpha
                    fast.copy_(slow)
        return loss

    def slow_of(self, number, place, fast):
        return self.state[fast].setdefault("slow_param", fast.detach().clone())

    def zero_grad(self, set_to_none=True):
        self.optimizer.zero_grad(set_to_none)


class InLists(Lookahead):
    """Its slow weights are made at once, in lists in the order of the param groups."""

    def __init__(self, optimizer, k=3, alpha=0.5):
        super().__init__(optimizer, k, alpha)
        self.state = optimizer.state
        self.slow = [[p.detach().clone() for p in group["params"]] for group in self.param_groups]

    @torch.no_grad()
    def step(self, closure=None):
        before = [[p.clone() for p in group["params"]] for group in self.param_groups]
        loss = super().step(closure)
        for group, olds in zip(self.param_groups, before, strict=True):
            for fast, old in zip(group["params"], olds, strict=True):
                fast.lerp_(old, 0.1)  # what is kept over the step of the other must belong to the same connections
        return loss

    def slow_of(self, number, place, fast):
        return self.slow[number][place]


class ById(Lookahead):
    """Its slow weights are under the parameters' `id`, in an object of their own."""

    class Slow:
        def __init__(self, params):
            self.weights = {id(p): p.detach().clone() for p in params}

    def __init__(self, optimizer, k=3, alpha=0.5):
        super().__init__(optimizer, k, alpha)
        self.slow = self.Slow(p for group in self.param_groups for p in group["params"])

    def slow_of(self, number, place, fast):
        return self.slow.weights[id(fast)]

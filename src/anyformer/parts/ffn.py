"""Feed-forward parts, for each position of the sequence alone. B batch, T time, D width, F hidden width."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from anyformer.core.flow import Flow
from anyformer.core.part import check_option, drop
from anyformer.core.recompute import Recomputed, remade
from anyformer.core.slots import FeedForward
from anyformer.parts.products import fused, narrowed, product


def _quick_gelu(x: Tensor) -> Tensor:
    """x sigmoid(1.702 x); where nothing is kept for a backward pass in the memory of the sigmoid."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return x * (1.702 * x).sigmoid()
    return (1.702 * x).sigmoid_().mul_(x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": _quick_gelu,  # Hendrycks and Gimpel, 2016; arXiv:1606.08415, section 2
    "relu": F.relu,
    "relu2": lambda x: x.relu().square(),  # squared ReLU (So et al., 2021; arXiv:2109.08668)
    "silu": F.silu,
    "tanh": torch.tanh,
}


# The derivative of an activation times the gradient, (gradient, x) -> same, in one pass.
SLOPES: dict[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]] = {
    ACTIVATIONS["gelu"]: torch.ops.aten.gelu_backward,
    ACTIVATIONS["gelu_tanh"]: partial(torch.ops.aten.gelu_backward, approximate="tanh"),
    ACTIVATIONS["silu"]: torch.ops.aten.silu_backward,
}


def activation(owner: str, name: str) -> Callable[[Tensor], Tensor]:
    """The function of that name; an unknown name is an error."""
    check_option(owner, "act", name, tuple(ACTIVATIONS))
    return ACTIVATIONS[name]


class Gated:
    """The product act(gate) * up, of which backward saves only `gate` and `up`.

    The act(gate) that backward recomputes for the next matrix also serves its own derivatives.
    """

    def __init__(self, act: Callable[[Tensor], Tensor]):
        self.act, self.opened = act, list[Tensor]()

    def __call__(self, gate: Tensor, up: Tensor) -> Tensor:
        if is_traceable_wrapper_subclass(gate):  # DTensor
            return self.act(gate) * up
        return GatedProduct.apply(gate, up, self)

    def again(self, gate: Tensor, up: Tensor) -> Callable[[], Tensor]:
        """A function that recomputes the product, for `remade`."""
        gate, up = gate.detach(), up.detach()

        def make() -> Tensor:
            self.opened[:] = [self.act(gate)]
            return self.opened[0] * up

        return make


class GatedProduct(torch.autograd.Function):
    """act(gate) * up. Backward: grad * act(gate) for up, grad * up * act'(gate) for gate."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, of: Gated) -> Tensor:
        ctx.save_for_backward(gate, up)
        ctx.of = of
        return of.act(gate) * up

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        gate, up = ctx.saved_tensors
        act = ctx.of.act
        if torch.is_grad_enabled():  # for second derivatives
            with torch.enable_grad():
                opened = act(gate)
                (slope,) = torch.autograd.grad(opened, gate, grad * up, create_graph=True)
            return slope, grad * opened, None
        opened = ctx.of.opened.pop() if ctx.of.opened else act(gate)
        of_up = grad * opened
        into = torch.mul(grad, up, out=opened)  # in the memory of `opened`
        if act in SLOPES:
            return SLOPES[act](into, gate), of_up, None
        with torch.enable_grad():
            gate = gate.detach().requires_grad_()
            (slope,) = torch.autograd.grad(act(gate), gate, into)
        return slope, of_up, None


class MLP(FeedForward):
    """y = down(act(up(x))) (Vaswani et al., 2017; arXiv:1706.03762). `hidden` is 4 x width by default. Shape: (B, T,
    D) -> same."""

    def __init__(self, dim: int, hidden: int | None = None, act: str = "gelu", bias: bool = True, dropout: float = 0.0):
        super().__init__()
        hidden = 4 * dim if hidden is None else hidden
        self.up, self.down = nn.Linear(dim, hidden, bias), nn.Linear(hidden, dim, bias)
        self.act, self.dropout, self.named = activation("MLP", act), dropout, act

    def forward(self, x: Tensor, flow: Flow) -> Tensor:
        if fused(self.up, x, self.named):
            hidden = product(self.up, x, self.named)  # (B, T, F)
        else:
            hidden = self.act(product(self.up, x))
        return product(self.down, drop(self, hidden))


class GatedMLP(FeedForward):
    """y = down(act(gate(x)) * up(x)): SwiGLU with silu, GeGLU with gelu (Shazeer, 2020; arXiv:2002.05202). Shape:
    (B, T, D) -> same."""

    def __init__(self, dim: int, hidden: int, act: str = "silu", bias: bool = False, dropout: float = 0.0):
        super().__init__()
        self.gate, self.up = nn.Linear(dim, hidden, bias), nn.Linear(dim, hidden, bias)
        self.down = nn.Linear(hidden, dim, bias)
        self.act, self.dropout, self.named = activation("GatedMLP", act), dropout, act

    def forward(self, x: Tensor, flow: Flow) -> Tensor:
        if not torch.is_grad_enabled():
            fast = fused(self.gate, x, self.named)
            hidden = product(self.gate, x, self.named) if fast else self.act(product(self.gate, x))
            return product(self.down, drop(self, hidden.mul_(product(self.up, x))))  # in place: not needed again
        x = narrowed(x)
        gate, up = product(self.gate, x), product(self.up, x)  # (B, T, F) each
        if flow.find(Recomputed) or torch.compiler.is_compiling() or (self.training and self.dropout):
            return product(self.down, drop(self, self.act(gate) * up))
        # Two of the four tensors that backward reads are recomputed from the other two: cheap, and half of the memory.
        opened = Gated(self.act)
        hidden = opened(gate, up)
        with remade(hidden, opened.again(gate, up)):
            return product(self.down, hidden)

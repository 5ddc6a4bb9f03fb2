"""Feed-forward parts: what happens at each place of the sequence alone. B batch, T time, D width, F hidden width."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anyformer.core.flow import Flow
from anyformer.core.part import check_option, drop
from anyformer.core.recompute import Recomputed, remade
from anyformer.core.slots import FeedForward

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * (1.702 * x).sigmoid(),  # Hendrycks and Gimpel, 2016; arXiv:1606.08415, section 2
    "relu": F.relu,
    "relu2": lambda x: x.relu().square(),  # squared ReLU (So et al., 2021; arXiv:2109.08668)
    "silu": F.silu,
    "tanh": torch.tanh,
}


def activation(owner: str, name: str) -> Callable[[Tensor], Tensor]:
    """The function of that name; an unknown name is an error, never a default."""
    check_option(owner, "act", name, tuple(ACTIVATIONS))
    return ACTIVATIONS[name]


class MLP(FeedForward):
    """y = down(act(up(x))) (Vaswani et al., 2017; arXiv:1706.03762). `hidden` is 4 x width by default. Shape: (B, T,
    D) -> same."""

    def __init__(self, dim: int, hidden: int | None = None, act: str = "gelu", bias: bool = True, dropout: float = 0.0):
        super().__init__()
        hidden = 4 * dim if hidden is None else hidden
        self.up, self.down = nn.Linear(dim, hidden, bias), nn.Linear(hidden, dim, bias)
        self.act, self.dropout = activation("MLP", act), dropout

    def forward(self, x: Tensor, flow: Flow) -> Tensor:
        return self.down(drop(self, self.act(self.up(x))))  # (B, T, F) inside


class GatedMLP(FeedForward):
    """y = down(act(gate(x)) * up(x)): SwiGLU with silu, GeGLU with gelu (Shazeer, 2020; arXiv:2002.05202). Shape:
    (B, T, D) -> same."""

    def __init__(self, dim: int, hidden: int, act: str = "silu", bias: bool = False, dropout: float = 0.0):
        super().__init__()
        self.gate, self.up = nn.Linear(dim, hidden, bias), nn.Linear(dim, hidden, bias)
        self.down = nn.Linear(hidden, dim, bias)
        self.act, self.dropout = activation("GatedMLP", act), dropout

    def forward(self, x: Tensor, flow: Flow) -> Tensor:
        if not torch.is_grad_enabled():
            hidden = self.act(self.gate(x)).mul_(self.up(x))  # in place: nobody needs it again
            return self.down(drop(self, hidden))
        gate, up = self.gate(x), self.up(x)  # (B, T, F) each
        if flow.find(Recomputed) or torch.compiler.is_compiling() or (self.training and self.dropout):
            return self.down(drop(self, self.act(gate) * up))
        # Two of the four tensors that backward reads are made from the other two: cheap, and half of the memory.
        g, u = gate.detach(), up.detach()
        opened = self.act(gate)
        with remade(opened, lambda: self.act(g)):
            hidden = opened * up
        with remade(hidden, lambda: self.act(g) * u):
            return self.down(hidden)

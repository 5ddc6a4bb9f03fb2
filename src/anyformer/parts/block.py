"""Block: a few residual branches, each with its norm."""

from typing import Any

import torch
from torch import Tensor, nn

from anyformer.core.flow import Flow
from anyformer.core.mixer import Mixer
from anyformer.core.part import Part, built, check_option, drop
from anyformer.core.recipe import Recipe
from anyformer.core.slots import FeedForward, Norm, Scale


class Block(Part):
    """One layer: the branches `mixer` (over time), `cross` (to the encoder's memory), `ffn` (each position alone).

    ```
    pre        x ──┬── norm ── branch ──(+)──>        the stream itself is never normed (GPT-2, LLaMA, T5, ViT)
                   └────────────────────┘
    post       x ──┬── branch ──(+)── norm ──>        normed after each sum (BERT, the 2017 Transformer)
                   └─────────────┘
    sandwich   x ──┬── norm ── branch ── norm ──(+)──>
                   └────────────────────────────┘
    parallel   x ──┬── norm ── mixer ──(+)──>          both read the same x (GPT-NeoX)
                   ├── norm ── ffn ────┤
                   └───────────────────┘
    each (+)   stream * x + scale(branch)              LayerScale, ReZero, DeepNorm, residual multipliers
    ```

    Args:
        mixer, cross, ffn: recipes; a branch that is None does not exist.
        norm: recipe of every norm; they are `norm.mixer`, `norm.cross`, `norm.ffn`, and in a sandwich
            `norm.mixer_out`, ….
        wiring: one of the four above.
        dropout: at the end of each branch.
        scale: recipe of the scale of each branch before the sum: `LayerScale.of()`, `Times.of(0.22)`, or None;
            they are `scale.mixer`, ….
        stream: a factor on x in each sum.
        gain: a factor on the initial weights of every matrix in the branches but q and k; only `initialise` reads it.
            `deepnorm(depth)` has stream and gain of DeepNorm.

    Shape: (B, T, D) -> same.
    """

    def __init__(
        self,
        dim: int,
        mixer: Recipe[Mixer] | None,
        norm: Recipe[Norm],
        ffn: Recipe[FeedForward] | None = None,
        cross: Recipe[Mixer] | None = None,
        wiring: str = "pre",
        dropout: float = 0.0,
        scale: Recipe[Scale] | None = None,
        stream: float = 1.0,
        gain: float = 1.0,
    ):
        super().__init__()
        check_option("Block", "wiring", wiring, ("pre", "post", "sandwich", "parallel"))
        self.mixer, self.cross, self.ffn = built(mixer, dim), built(cross, dim), built(ffn, dim)
        self.branches = [name for name in ("mixer", "cross", "ffn") if getattr(self, name) is not None]
        self.norm = nn.ModuleDict({name: norm.build(dim) for name in self.branches})
        if wiring == "sandwich":
            self.norm.update({f"{name}_out": norm.build(dim) for name in self.branches})
        if stream != 1.0 and wiring == "parallel":
            raise ValueError(
                f"Block: stream={stream} needs several sums, one after the other, and wiring 'parallel' has one"
            )
        self.scale: Any = None
        if scale is not None:
            self.scale = nn.ModuleDict({name: scale.build(dim) for name in self.branches})
        self.wiring, self.dropout, self.stream, self.gain = wiring, dropout, stream, gain

    def adjust_parameters(self) -> None:
        for name in self.branches if self.gain != 1.0 else ():
            for path, module in getattr(self, name).named_modules():
                if isinstance(module, nn.Linear) and path not in ("q", "k"):
                    with torch.no_grad():
                        module.weight.mul_(self.gain)

    def forward(self, x: Tensor, flow: Flow) -> Tensor:
        source = x
        for name in self.branches:
            branch, norm = getattr(self, name), self.norm[name]
            if self.wiring == "post":
                x = norm(self._sum(name, x, branch(x, flow)))
            elif self.wiring == "sandwich":
                x = self._sum(name, x, self.norm[f"{name}_out"](branch(norm(x), flow)))
            else:
                x = self._sum(name, x, branch(norm(source if self.wiring == "parallel" else x), flow))
        return x

    def _sum(self, name: str, x: Tensor, y: Tensor) -> Tensor:
        y = drop(self, y if self.scale is None else self.scale[name](y))
        return x + y if self.stream == 1.0 else torch.add(y, x, alpha=self.stream)


def deepnorm(depth: int) -> dict[str, Any]:
    """Options of `Block` for DeepNorm in a stack of `depth` blocks of two branches (Wang et al., 2022;
    arXiv:2203.00555): x = norm(alpha x + branch(x)), alpha = (2 N)^1/4, initial weights times beta = (8 N)^-1/4.

    The paper draws them by Xavier's rule: `initialise(model, scheme="xavier")`. `Block.of(…, **deepnorm(24))`.
    """
    if depth < 1:
        raise ValueError(f"deepnorm: depth, the number of blocks, must be at least 1; got {depth}")
    return {"wiring": "post", "stream": (2 * depth) ** 0.25, "gain": (8 * depth) ** -0.25}

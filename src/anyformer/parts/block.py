"""Block: a few residual branches, each with its norm."""

from torch import Tensor, nn

from anyformer.core.flow import Flow
from anyformer.core.part import Part, built, check_option, drop
from anyformer.core.recipe import Recipe


class Block(Part):
    """One layer: the branches `mixer` (over time), `cross` (to the encoder's memory), `ffn` (each place alone).

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
    ```

    Args:
        mixer, cross, ffn: recipes; a branch that is None does not exist.
        norm: recipe of every norm; they are `norm.mixer`, `norm.cross`, `norm.ffn`, and in a sandwich
            `norm.mixer_out`, ….
        wiring: one of the four above.
        dropout: at the end of each branch.

    Shape: (B, T, D) -> same.
    """

    def __init__(
        self,
        dim: int,
        mixer: Recipe | None,
        norm: Recipe,
        ffn: Recipe | None = None,
        cross: Recipe | None = None,
        wiring: str = "pre",
        dropout: float = 0.0,
    ):
        super().__init__()
        check_option("Block", "wiring", wiring, ("pre", "post", "sandwich", "parallel"))
        self.mixer, self.cross, self.ffn = built(mixer, dim), built(cross, dim), built(ffn, dim)
        self.branches = [name for name in ("mixer", "cross", "ffn") if getattr(self, name) is not None]
        self.norm = nn.ModuleDict({name: norm.build(dim) for name in self.branches})
        if wiring == "sandwich":
            self.norm.update({f"{name}_out": norm.build(dim) for name in self.branches})
        self.wiring, self.dropout = wiring, dropout

    def forward(self, x: Tensor, flow: Flow) -> Tensor:
        source = x
        for name in self.branches:
            branch, norm = getattr(self, name), self.norm[name]
            if self.wiring == "post":
                x = norm(x + drop(self, branch(x, flow)))
            elif self.wiring == "sandwich":
                x = x + drop(self, self.norm[f"{name}_out"](branch(norm(x), flow)))
            else:
                x = x + drop(self, branch(norm(source if self.wiring == "parallel" else x), flow))
        return x

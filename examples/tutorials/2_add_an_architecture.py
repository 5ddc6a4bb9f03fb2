"""Add an architecture.

An architecture of your own is a dataclass of hyperparameters and a function that returns a recipe. If a part is
missing, you write it as an ordinary `torch.nn.Module`. This script does both, and has the contract check the result.
To publish the architecture, put the same code into a file of `src/anyformer/models`, as [the
how-to](../adding-an-architecture.md) explains.
"""

# %% [markdown]
# ## A new mixer
#
# A mixer moves information between positions. This one is the simplest that can be causal: each position receives the
# mean of all positions up to itself. The first argument of a part is the width of the stream. `forward` takes the
# stream and the flow, which holds what the parts of one pass share, here the padding mask and the decoding state.
# `start` makes the state: the sum of all values so far, and their number.

# %%
import torch
from torch import Tensor, nn

from anyformer import Flow, Mixer
from anyformer.parts.recurrent.chunked import Recurrent


class RunningMean(Mixer):
    """The mean of all values so far, gated: sigmoid(g(x)) * mean(v(x)). (B, T, D) -> same."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.v, self.g, self.o = nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, dim)

    def start(self, batch: int, length: int, like: Tensor) -> Recurrent:
        return Recurrent(like.new_zeros(batch, 1, self.v.out_features), like.new_zeros(batch, 1, 1))

    def forward(self, x: Tensor, flow: Flow) -> Tensor:
        self.needs_causal(flow)
        slot = flow.slot(self)
        total, count = (slot or self.start(x.shape[0], 0, x)).held
        total = total + flow.clear(self.v(x)).cumsum(1)  # (B, T, D)
        count = count + flow.clear(torch.ones_like(x[..., :1])).cumsum(1)  # (B, T, 1)
        if slot is not None:
            slot.put(x.shape[1], total[:, -1:], count[:, -1:])
        return self.o(torch.sigmoid(self.g(x)) * total / count.clamp(min=1))


# %% [markdown]
# ## The architecture
#
# Three blocks of four use the new mixer, the fourth uses attention. Blocks that differ are an ordinary Python list.

# %%
from dataclasses import dataclass

import anyformer as af
from anyformer.parts import Attention, Block, GatedMLP, Logits, RMSNorm, Rotary, Tokens


@dataclass(frozen=True)
class Meanformer:
    dim: int = 64
    depth: int = 4
    heads: int = 4
    hidden: int = 128
    vocab: int = 128
    context: int = 64


def meanformer(c: Meanformer) -> af.Recipe:
    norm, ffn = RMSNorm.of(), GatedMLP.of(hidden=c.hidden)
    cheap = Block.of(mixer=RunningMean.of(), ffn=ffn, norm=norm)
    full = Block.of(mixer=Attention.of(heads=c.heads, positions=Rotary.of()), ffn=ffn, norm=norm)
    blocks = [full if i % 4 == 3 else cheap for i in range(c.depth)]
    return af.CausalLM.of(
        c.dim, Tokens.of(vocab=c.vocab), blocks, norm=norm, head=Logits.of(vocab=c.vocab), context=c.context
    )


model = af.build(meanformer(Meanformer()), seed=0)
for path, module in model.named_modules():
    if isinstance(module, Mixer):
        print(path, type(module).__name__)

# %% [markdown]
# ## What works without further code
#
# Generation, taps, adapters, saving and loading work by path, so they work here.

# %%
print(model.generate([[1, 2, 3]], max_new_tokens=4, temperature=0))
print(model.generate([[1, 2, 3]], max_new_tokens=4, temperature=0, cache=False))

# %% [markdown]
# ## The contract
#
# The contract checks padding, causality, decoding, gradients and more. `anyformer verify` runs it on an architecture
# or on a folder. Here it finds no fault. Write `sum(1, keepdim=True)` for the first `cumsum(1)`, and it reports that
# the future changes the result.

# %%
from anyformer import contract

model.save("meanformer")
report = contract.verify("meanformer")
for row in report.rows:
    if row.result != "left out":
        print(f"{row.check:36} {row.result}")
print("contract kept:", report.ok)

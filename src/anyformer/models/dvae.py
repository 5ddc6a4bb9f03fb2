"""The discrete VAE of DALL-E (Ramesh et al., 2021; arXiv:2102.12092). A picture as a grid of codes, which a decoder can
write like words.

Differs from ViT, an encoder of patches, by: convolutions that halve the grid, no attention; each cell becomes one of a
few hundred codes, whose vectors alone the decoder of pixels sees.

```
pixels ── conv 4 x 4, stride 2, ReLU x layers ── residual x n ── scores of codes ── + noise, softmax / temperature ─┐
                                                                  └─ KL to the uniform distribution       x table ─┤
pixels ── conv 1 x 1 ── transposed conv 4 x 4, stride 2, ReLU x layers ── residual x n ── (conv 1 x 1) ────────────┘
```
"""

import math
from dataclasses import dataclass

from anyformer.core.recipe import Recipe
from anyformer.hub.tables.weights import Hub
from anyformer.parts.codes import Codes, ConvGrid, ConvPixels
from anyformer.skeletons.autoencoder import Autoencoder


@dataclass(frozen=True)
class DVAE:
    dim: int = 64
    image: int = 256
    layers: int = 3
    residual: int = 0
    channels: int = 3
    vocab: int = 512  # codes
    width: int = 512  # of their vectors
    temperature: float = 0.9
    draws: str = "soft"  # or straight, reinmax: one code with noise
    mean: float = 0.5  # of pixels from 0 to 1, as the processor has it
    std: float = 0.5


def dvae(c: DVAE) -> Recipe:
    embed = ConvGrid.of(image=c.image, layers=c.layers, residual=c.residual, channels=c.channels)
    codes = Codes.of(vocab=c.vocab, width=c.width, temperature=c.temperature, draws=c.draws)
    decoder = ConvPixels.of(hidden=c.dim, layers=c.layers, residual=c.residual, channels=c.channels)
    return Autoencoder.of(c.dim, embed, codes, decoder, mean=c.mean, std=c.std)


def annealed(step: int, steps: int, first: float = 1.0, last: float = 1 / 16) -> float:
    """The temperature after `step` of `steps`: along half a cosine from `first` to `last`, as DALL-E's was."""
    share = min(1.0, step / max(1, steps))
    return last + (first - last) * (1 + math.cos(math.pi * share)) / 2


SIZES = {
    "tiny": DVAE(dim=12, image=8, layers=1, residual=1, vocab=20, width=10),
    "mini": DVAE(dim=64, image=32, layers=2, residual=1, vocab=256, width=64),
    "base": DVAE(residual=1, vocab=8192),
}
PARAMETERS = {"tiny": 9_079, "mini": 393_347, "base": 5_246_979}
CASES = {
    "plain": {"residual": 0, "layers": 2, "channels": 1},
    "straight": {"draws": "straight", "temperature": 0.5, "mean": 0.4, "std": 0.3},
    "reinmax": {"draws": "reinmax", "dim": 16, "width": 30, "image": 10},
}
ORACLE = (
    "nobody published checkpoints in a common format; scores, pixels, losses and gradients are compared with "
    "dalle-pytorch 1.6.6 on the same weights and noise (tests/parts/test_dalle.py)"
)
HUBS: tuple[Hub, ...] = ()

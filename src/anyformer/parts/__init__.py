"""The parts that every page is made of. `from anyformer.parts import Attention, Block, ...`"""

from anyformer.parts.attention import Attention
from anyformer.parts.block import Block
from anyformer.parts.embeddings import Entry, Learned, Patches, Sinusoidal, Tokens
from anyformer.parts.ffn import MLP, GatedMLP
from anyformer.parts.heads import Classifier, First, Logits, MaskedLM, Pooler
from anyformer.parts.masks import Causal, Full, Window
from anyformer.parts.moe import ExpertChoice, MoE, TopK
from anyformer.parts.norms import LayerNorm, RMSNorm
from anyformer.parts.patterns import BlockWindow, Dilated, Global, Prefix, Random, Strided
from anyformer.parts.positions import RelativeBias, Rotary
from anyformer.parts.ssm import Mamba

__all__ = [
    "MLP", "Attention", "Block", "BlockWindow", "Causal", "Classifier", "Dilated", "Entry", "ExpertChoice", "First",
    "Full", "GatedMLP", "Global", "LayerNorm", "Learned", "Logits", "Mamba", "MaskedLM", "MoE", "Patches", "Pooler",
    "Prefix", "RMSNorm", "Random", "RelativeBias", "Rotary", "Sinusoidal", "Strided", "Tokens", "TopK", "Window",
]  # fmt: skip

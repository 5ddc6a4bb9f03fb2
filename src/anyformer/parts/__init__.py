"""The parts that every page is made of. `from anyformer.parts import Attention, Block, ...`"""

from anyformer.parts.attention import Attention
from anyformer.parts.autocorrelation import AutoCorrelation
from anyformer.parts.block import Block, deepnorm
from anyformer.parts.compressive import CompressiveMemory
from anyformer.parts.convolution import Convolution, ConvPositions
from anyformer.parts.delta import GatedDelta
from anyformer.parts.embeddings import Entry, Learned, Patches, Sinusoidal, Tokens
from anyformer.parts.ffn import MLP, GatedMLP
from anyformer.parts.fourier import Fourier
from anyformer.parts.grid import Axial, Rotary2D, Sines2D
from anyformer.parts.heads import Classifier, Dense, First, Logits, MaskedLM, Mean, Pooler, Through
from anyformer.parts.latent import LatentAttention
from anyformer.parts.linear import Favor, LinearAttention
from anyformer.parts.lowrank import Linformer, Nystrom
from anyformer.parts.lsh import LocalAttention, LSHAttention
from anyformer.parts.masks import Causal, Full, Window
from anyformer.parts.memory import SegmentRecurrence
from anyformer.parts.memory_tokens import MemoryTokens
from anyformer.parts.moe import ExpertChoice, MoE, TopK
from anyformer.parts.nearest import NearestMemory
from anyformer.parts.norms import LayerNorm, LayerScale, OneRMSNorm, RMSNorm, ScaleNorm, Times
from anyformer.parts.patterns import BlockWindow, Dilated, Global, Prefix, Random, Strided
from anyformer.parts.pooling import AdditivePool
from anyformer.parts.positions import RelativeBias, Rotary
from anyformer.parts.probsparse import ProbSparse
from anyformer.parts.relative import Relative
from anyformer.parts.reversible import ChunkedMLP, ReversibleBlock, ReversibleEncoder, ReversibleLM, TwoStreams
from anyformer.parts.soft import Alibi, Decay, Distances, Forget, SoftCap, Span, Temperature
from anyformer.parts.ssm import Mamba
from anyformer.parts.ssm2 import Mamba2

__all__ = [
    "MLP", "AdditivePool", "Alibi", "Attention", "AutoCorrelation", "Axial", "Block", "BlockWindow", "Causal",
    "ChunkedMLP", "Classifier", "CompressiveMemory", "ConvPositions", "Convolution", "Decay", "Dense", "Dilated",
    "Distances", "Entry", "ExpertChoice", "Favor", "First", "Forget", "Fourier", "Full", "GatedDelta", "GatedMLP",
    "Global", "LSHAttention", "LayerNorm", "LayerScale", "LatentAttention", "Learned", "LinearAttention",
    "Linformer", "LocalAttention", "Logits", "Mamba", "Mamba2", "MaskedLM", "Mean", "MemoryTokens", "MoE",
    "NearestMemory", "Nystrom", "OneRMSNorm", "Patches", "Pooler", "Prefix", "ProbSparse", "RMSNorm", "Random",
    "Relative", "RelativeBias", "ReversibleBlock", "ReversibleEncoder", "ReversibleLM", "Rotary", "Rotary2D",
    "ScaleNorm", "SegmentRecurrence", "Sines2D", "Sinusoidal", "SoftCap", "Span", "Strided", "Temperature",
    "Through", "Times", "Tokens", "TopK", "TwoStreams", "Window", "deepnorm",
]  # fmt: skip

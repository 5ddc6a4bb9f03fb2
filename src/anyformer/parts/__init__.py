"""The parts that all pages use. `from anyformer.parts import Attention, Block, ...`"""

from anyformer.parts.adaptive import Adaptive, AdaptiveNorm, Side
from anyformer.parts.approximate.autocorrelation import AutoCorrelation
from anyformer.parts.approximate.fourier import Fourier
from anyformer.parts.approximate.hierarchical import Hierarchical
from anyformer.parts.approximate.linear import Favor, LinearAttention
from anyformer.parts.approximate.low_rank import Linformer, Nystrom
from anyformer.parts.approximate.lsh import LocalAttention, LSHAttention
from anyformer.parts.approximate.probsparse import ProbSparse
from anyformer.parts.attention.attention import Attention
from anyformer.parts.attention.groups import Grouped
from anyformer.parts.attention.latent import LatentAttention
from anyformer.parts.attention.masks import Causal, Full, Window
from anyformer.parts.attention.relative import Relative
from anyformer.parts.attention.score_parts import Alibi, Decay, Distances, Forget, SoftCap, Span, Temperature
from anyformer.parts.attention.sparse_masks import BlockWindow, Dilated, Global, Prefix, Random, Strided
from anyformer.parts.attention.windows import GridBias, Windows
from anyformer.parts.block import Block, deepnorm
from anyformer.parts.conditions import Label, States, Time, Vector
from anyformer.parts.cubes import Cubes
from anyformer.parts.embeddings import Entry, Learned, Patches, Sinusoidal, Tokens
from anyformer.parts.ffn import MLP, GatedMLP
from anyformer.parts.grid import Axial, Rotary2D, RotaryAxes, Sines2D
from anyformer.parts.heads import (
    At,
    Classifier,
    Dense,
    First,
    Logits,
    MaskedLM,
    Mean,
    Pooler,
    Project,
    Through,
    Unpatch,
)
from anyformer.parts.memory.compressive import CompressiveMemory
from anyformer.parts.memory.nearest import NearestMemory
from anyformer.parts.memory.segments import SegmentRecurrence
from anyformer.parts.memory.tokens import MemoryTokens
from anyformer.parts.moe import ExpertChoice, MoE, TopK
from anyformer.parts.norms import (
    LayerNorm,
    LayerScale,
    OneRMSNorm,
    PlainNorm,
    RMSNorm,
    ScaleNorm,
    StochasticDepth,
    Times,
)
from anyformer.parts.pooling import AdditivePool
from anyformer.parts.positions import RelativeBias, Rotary
from anyformer.parts.projector import Averager, Merger, Projector
from anyformer.parts.pyramid import Merge, PatchGrid
from anyformer.parts.recurrent.convolution import Convolution, ConvPositions
from anyformer.parts.recurrent.delta import GatedDelta
from anyformer.parts.recurrent.mamba import Mamba
from anyformer.parts.recurrent.mamba2 import Mamba2
from anyformer.parts.reversible import ChunkedMLP, ReversibleBlock, TwoStreams
from anyformer.parts.sound.chunks import Chunks
from anyformer.parts.sound.heads import CTC, Context, Quantised, SoundClasses, Units
from anyformer.parts.sound.mels import Mels
from anyformer.parts.sound.waves import Waves
from anyformer.parts.streams import JointAttention, JointBlock, LastJointAttention
from anyformer.parts.trajectory import EachStep, Trajectory

__all__ = [
    "CTC", "MLP", "Adaptive", "AdaptiveNorm", "AdditivePool", "Alibi", "At", "Attention", "AutoCorrelation", "Averager",
    "Axial", "Block", "BlockWindow", "Causal", "ChunkedMLP", "Chunks", "Classifier", "CompressiveMemory", "Context",
    "ConvPositions", "Convolution", "Cubes", "Decay", "Dense", "Dilated", "Distances", "EachStep", "Entry",
    "ExpertChoice", "Favor", "First", "Forget", "Fourier", "Full", "GatedDelta", "GatedMLP", "Global", "GridBias",
    "Grouped", "Hierarchical", "JointAttention", "JointBlock", "LSHAttention", "Label", "LastJointAttention",
    "LatentAttention", "LayerNorm", "LayerScale", "Learned", "LinearAttention", "Linformer", "LocalAttention", "Logits",
    "Mamba", "Mamba2", "MaskedLM", "Mean", "Mels", "MemoryTokens", "Merge", "Merger", "MoE", "NearestMemory", "Nystrom",
    "OneRMSNorm", "PatchGrid", "Patches", "PlainNorm", "Pooler", "Prefix", "ProbSparse", "Project", "Projector",
    "Quantised", "RMSNorm", "Random", "Relative", "RelativeBias", "ReversibleBlock", "Rotary", "Rotary2D", "RotaryAxes",
    "ScaleNorm", "SegmentRecurrence", "Side", "Sines2D", "Sinusoidal", "SoftCap", "SoundClasses", "Span", "States",
    "StochasticDepth", "Strided", "Temperature", "Through", "Time", "Times", "Tokens", "TopK", "Trajectory",
    "TwoStreams", "Units", "Unpatch", "Vector", "Waves", "Window", "Windows", "deepnorm",
]  # fmt: skip

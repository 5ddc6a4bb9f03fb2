"""Other people's layers, with our weights in them. B batch, T time, D width, H heads, K width of a head.

`PEERS[name]` says which of our mixers it is beside. Its `make` takes that mixer and a length, and returns a function
from x (B, T, D) to (B, T, D), a module where it has parameters of its own. A layer that has no projections of its own,
only the kernel between them, gets ours.

Not here: memorizing-transformers-pytorch requires faiss-gpu, which no index has for this Python.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import attention_peers_sparse as sparse
from benchmarks.attention_adapters import Between, Called, Layer, copied, joined
from benchmarks.attention_mixers import DIM, HEADS

PROJECTIONS = {
    "q.weight": "to_q.weight",
    "k.weight": "to_k.weight",
    "v.weight": "to_v.weight",
    "o.weight": "to_out.weight",
}


@dataclass(frozen=True)
class Peer:
    """A layer of another package: which of our mixers it does the same as, and how it is made from it."""

    ours: str
    make: Callable[[Any, int], Layer]
    package: str


def gpt2(ours: Any, length: int) -> Layer:
    from transformers import GPT2Config
    from transformers.models.gpt2.modeling_gpt2 import GPT2Attention

    config = GPT2Config(
        n_embd=DIM, n_head=HEADS, n_positions=length, attn_pdrop=0.0, resid_pdrop=0.0, attn_implementation="sdpa"
    )
    theirs = GPT2Attention(config, layer_idx=0)
    copied(theirs, {
        "c_attn.weight": torch.cat([p.weight for p in (ours.q, ours.k, ours.v)]).T,
        "c_attn.bias": torch.cat([p.bias for p in (ours.q, ours.k, ours.v)]),
        "c_proj.weight": ours.o.weight.T, "c_proj.bias": ours.o.bias,
    })  # fmt: skip
    return Called(theirs, lambda m, x: m(x)[0])


def torch_mha(ours: Any, length: int) -> Layer:
    theirs = nn.MultiheadAttention(DIM, HEADS, batch_first=True)
    copied(theirs, {
        "in_proj_weight": torch.cat([p.weight for p in (ours.q, ours.k, ours.v)]),
        "in_proj_bias": torch.cat([p.bias for p in (ours.q, ours.k, ours.v)]),
        "out_proj.weight": ours.o.weight, "out_proj.bias": ours.o.bias,
    })  # fmt: skip
    return Called(theirs, lambda m, x: m(x, x, x, need_weights=False)[0])


def local(ours: Any, length: int) -> Layer:
    from local_attention import LocalAttention

    kernel = LocalAttention(
        window_size=255, causal=True, look_backward=1, exact_windowsize=True, use_rotary_pos_emb=False, autopad=True
    )
    return Between(ours, kernel)


def performer_kernel(ours: Any, length: int, causal: bool) -> Layer:
    from performer_pytorch import performer_pytorch as package

    inner = package.causal_linear_attention_noncuda if causal else package.linear_attention
    return Between(ours, lambda q, k, v: inner(nn.functional.elu(q) + 1, nn.functional.elu(k) + 1, v))


def performer(ours: Any, length: int, causal: bool) -> Layer:
    from performer_pytorch import performer_pytorch as package

    ours.eps = 0.0  # theirs counts from the largest of all keys, the future included; without eps it cancels
    package.softmax_kernel = functools.partial(package.softmax_kernel, eps=0.0)
    theirs = package.SelfAttention(
        DIM, heads=HEADS, dim_head=DIM // HEADS, causal=causal, nb_features=ours.count, qkv_bias=False,
        attn_out_bias=False,
    )  # fmt: skip
    theirs.fast_attention.projection_matrix.copy_(ours.projection)
    if causal:
        theirs.fast_attention.causal_linear_fn = functools.partial(package.causal_linear_attention_noncuda, eps=0.0)
    copied(theirs, joined(ours, PROJECTIONS))
    return theirs


def linformer(ours: Any, length: int) -> Layer:
    from linformer.linformer import LinformerSelfAttention

    theirs = LinformerSelfAttention(DIM, length, k=ours.rank, heads=HEADS)
    copied(theirs, joined(ours, PROJECTIONS | {"E": "proj_k", "F": "proj_v", "o.bias": "to_out.bias"}))
    return theirs


def nystrom(ours: Any, length: int) -> Layer:
    from nystrom_attention import NystromAttention

    theirs = NystromAttention(
        DIM,
        dim_head=DIM // HEADS,
        heads=HEADS,
        num_landmarks=ours.landmarks,
        pinv_iterations=ours.steps,
        residual=False,
    )
    copied(theirs, {
        "to_qkv.weight": torch.cat([p.weight for p in (ours.q, ours.k, ours.v)]), "to_out.0.weight": ours.o.weight,
        "to_out.0.bias": torch.zeros(DIM),
    })  # fmt: skip
    return theirs


def fnet(ours: Any, length: int) -> Layer:
    from transformers import FNetConfig
    from transformers.models.fnet.modeling_fnet import FNetBasicFourierTransform

    return Called(FNetBasicFourierTransform(FNetConfig(hidden_size=DIM)), lambda m, x: m(x)[0])


MAMBA = {
    "into.weight": "in_proj.weight", "conv.weight": "conv1d.weight", "conv.bias": "conv1d.bias",
    "select.weight": "x_proj.weight", "step.weight": "dt_proj.weight", "step.bias": "dt_proj.bias",
    "A_log": "A_log", "skip": "D", "out.weight": "out_proj.weight",
}  # fmt: skip


def mambapy(ours: Any, length: int) -> Layer:
    from mambapy.mamba import MambaBlock, MambaConfig

    theirs = MambaBlock(MambaConfig(d_model=DIM, n_layers=1))
    copied(theirs, joined(ours, MAMBA))
    return theirs


def hf_mamba(ours: Any, length: int) -> Layer:
    from transformers import MambaConfig
    from transformers.models.mamba.modeling_mamba import MambaMixer

    theirs = MambaMixer(MambaConfig(hidden_size=DIM, num_hidden_layers=1), layer_idx=0)
    copied(theirs, joined(ours, MAMBA))
    return theirs


def hf_mamba2(ours: Any, length: int) -> Layer:
    from transformers import Mamba2Config
    from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

    config = Mamba2Config(
        hidden_size=DIM, num_heads=ours.heads, head_dim=ours.hidden // ours.heads, state_size=ours.state, n_groups=1,
        num_hidden_layers=1,
    )  # fmt: skip
    theirs = Mamba2Mixer(config, layer_idx=0)
    same = {
        "into.weight": "in_proj.weight", "conv.weight": "conv1d.weight", "conv.bias": "conv1d.bias", "A_log": "A_log",
        "step": "dt_bias", "skip": "D", "norm.weight": "norm.weight", "out.weight": "out_proj.weight",
    }  # fmt: skip
    copied(theirs, joined(ours, same))
    return theirs


def hf_delta(ours: Any, length: int) -> Layer:
    from transformers import Qwen3NextConfig
    from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextGatedDeltaNet

    width = DIM // HEADS
    config = Qwen3NextConfig(
        hidden_size=DIM, linear_num_value_heads=HEADS, linear_num_key_heads=HEADS, linear_key_head_dim=width,
        linear_value_head_dim=width, num_hidden_layers=1, layer_types=["linear_attention"],
    )  # fmt: skip
    theirs = Qwen3NextGatedDeltaNet(config, layer_idx=0)

    def by_head(*parts: Tensor) -> Tensor:  # theirs has the rows of a head side by side
        return torch.cat([p.unflatten(0, (HEADS, -1)) for p in parts], 1).flatten(0, 1)

    copied(theirs, {
        "in_proj_qkvz.weight": by_head(*(p.weight for p in (ours.q, ours.k, ours.v, ours.gate))),
        "in_proj_ba.weight": by_head(ours.write.weight, ours.fade.weight), "dt_bias": ours.fade.bias,
        **joined(ours, {"conv.weight": "conv1d.weight", "A_log": "A_log", "norm.weight": "norm.weight",
                        "o.weight": "out_proj.weight"}),
    })  # fmt: skip
    return theirs


PEERS: dict[str, Peer] = {
    "transformers GPT-2, sdpa": Peer("full, sdpa", gpt2, "transformers"),
    "torch MultiheadAttention": Peer("full, sdpa, both ways", torch_mha, "torch"),
    "local-attention": Peer("window 256", local, "local-attention"),
    "transformers Longformer": Peer("window 128 + 128, both ways", sparse.longformer, "transformers"),
    "transformers Longformer, 16 global": Peer(
        "window 128 + 128 and 16 global, both ways", sparse.longformer, "transformers"
    ),
    "transformers Reformer, local": Peer("local, chunks of 128", sparse.hf_local, "transformers"),
    "transformers BigBird": Peer("BigBird's blocks of 64, both ways", sparse.big_bird, "transformers"),
    "reformer-pytorch": Peer("LSH, 4 rounds, both ways", sparse.reformer, "reformer-pytorch"),
    "transformers Reformer": Peer("LSH, 4 rounds, both ways", sparse.hf_lsh, "transformers"),
    "transformers Informer": Peer("ProbSparse, all keys, both ways", sparse.informer, "transformers"),
    "transformers Autoformer": Peer("auto-correlation, both ways", sparse.autoformer, "transformers"),
    "transformers XLNet, by segment": Peer("Transformer-XL, 256 + 256", sparse.xlnet, "transformers"),
    "compressive-transformer-pytorch": Peer(
        "compressive, 256 + 256 + 64 of 4", sparse.compressive, "compressive-transformer-pytorch"
    ),
    "performer-pytorch, linear": Peer(
        "linear, elu", functools.partial(performer_kernel, causal=True), "performer-pytorch"
    ),
    "performer-pytorch, linear, both ways": Peer(
        "linear, elu, both ways", functools.partial(performer_kernel, causal=False), "performer-pytorch"
    ),
    "performer-pytorch": Peer("FAVOR+", functools.partial(performer, causal=True), "performer-pytorch"),
    "performer-pytorch, both ways": Peer(
        "FAVOR+, both ways", functools.partial(performer, causal=False), "performer-pytorch"
    ),
    "linformer": Peer("Linformer, rank 256", linformer, "linformer"),
    "nystrom-attention": Peer("Nystrom, 64 landmarks", nystrom, "nystrom-attention"),
    "transformers FNet": Peer("Fourier", fnet, "transformers"),
    "mambapy": Peer("Mamba", mambapy, "mambapy"),
    "transformers Mamba": Peer("Mamba", hf_mamba, "transformers"),
    "transformers Mamba-2": Peer("Mamba-2", hf_mamba2, "transformers"),
    "transformers Qwen3-Next": Peer("gated delta", hf_delta, "transformers"),
}

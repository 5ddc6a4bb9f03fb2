"""DiT (Peebles and Xie, 2022; arXiv:2212.09748). An encoder of patches that says which noise is in a picture.

Differs from ViT by: no class token, and fixed places; the time and the class of a row are one vector, which shifts and
scales every norm and opens every branch (adaLN-zero); each cell becomes a patch of pixels again. Published models work
on latents of an autoencoder, 4 channels at an eighth of the picture's size; on pixels it is the same model.

```
timestep ── waves ── MLP ─(+)── told ───────────┐
class ──── table ──────────┘                    │
pixels ── patches + sines ── block x depth ── adaptive norm ── linear ── patches side by side

block:  ──┬─ norm ─ shift, scale ─ attention ─ gate ─(+)─┬─ norm ─ shift, scale ─ MLP ─ gate ─(+)──
          └──────────────────────────────────────────────┘└────────────────────────────────────┘
```
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from anyformer.core.recipe import Recipe
from anyformer.hub.tables.config import Lens, Same, key, must, quiet
from anyformer.hub.tables.several import Copies
from anyformer.hub.tables.weights import Hub, row, under
from anyformer.parts import (
    MLP,
    Adaptive,
    AdaptiveNorm,
    Attention,
    Label,
    PatchGrid,
    PlainNorm,
    Sines2D,
    Time,
    Unpatch,
)
from anyformer.skeletons.denoiser import Denoiser


@dataclass(frozen=True)
class DiT:
    dim: int = 1152
    depth: int = 28
    heads: int = 16
    image: int = 32  # height and width, of pixels or of an autoencoder's cells
    patch: int = 2
    channels: int = 4
    out: int = 8  # channels that it says: those of the noise, and as many for its variance in published models
    classes: int = 1000
    act: str = "gelu_tanh"
    bias: bool = True  # of q, k and v
    eps: float = 1e-5  # of the norm before the MLP; the others have 1e-6


def dit(c: DiT) -> Recipe:
    places = Sines2D.of(base=c.image // c.patch)
    embed = PatchGrid.of(image=c.image, patch=c.patch, channels=c.channels, positions=places)
    conditions = {"time": Time.of(last=True), "label": Label.of(classes=c.classes)}
    mixer = Attention.of(heads=c.heads, bias=c.bias, out_bias=True)
    norm = {"mixer": PlainNorm.of(), "ffn": PlainNorm.of(eps=c.eps)}
    block = Adaptive.of(mixer=mixer, norm=norm, ffn=MLP.of(act=c.act))
    head = Unpatch.of(patch=c.patch, channels=c.out, norm=AdaptiveNorm.of(norm=PlainNorm.of()))
    return Denoiser.of(c.dim, embed, conditions, [block] * c.depth, head)


SIZES = {
    # narrow: gates and scales multiply from block to block, and redrawn weights are large
    "tiny": DiT(dim=8, depth=2, heads=2, image=8, patch=2, channels=3, out=3, classes=5),
    "mini": DiT(dim=128, depth=6, heads=4, image=32, patch=4, channels=3, out=3, classes=10),
    "s2": DiT(dim=384, depth=12, heads=6),
    "b2": DiT(dim=768, depth=12, heads=12),
    "l2": DiT(dim=1024, depth=24, heads=16),
    "xl2": DiT(),
    "xl2-512": DiT(image=64),
}
PARAMETERS = {
    "tiny": 5_076,
    "mini": 1_877_296,
    "s2": 32_865_056,
    "b2": 130_315_808,
    "l2": 457_840_672,
    "xl2": 674_834_720,
    "xl2-512": 674_834_720,
}
CASES = {
    "odd": {
        "dim": 16,
        "depth": 1,
        "heads": 2,
        "image": 9,
        "patch": 3,
        "channels": 1,
        "out": 2,
        "classes": 3,
        "eps": 1e-3,
        "act": "gelu",
    },
    "small": {"dim": 12, "heads": 3, "image": 4, "bias": False},
}


def first_weights(c: DiT) -> dict[str, float]:
    """The authors' sizes: Xavier's rule for every matrix (q, k and v are one), small tables and embeddings of time;
    norms are told nothing, and the picture is 0, at first."""

    def xavier(rows: int, columns: int) -> float:
        return (2 / (rows + columns)) ** 0.5

    sizes = {"embed.project": xavier(c.dim, c.patch**2 * c.channels), "conditions.time.*": 0.02}
    sizes |= {"blocks.*.mixer.[qkv]": xavier(3 * c.dim, c.dim), "blocks.*.mixer.o": xavier(c.dim, c.dim)}
    return sizes | {"conditions.label.table": 0.02, "blocks.*.ffn.*": xavier(4 * c.dim, c.dim)}


def _read_width(config: Mapping[str, Any]) -> dict[str, Any]:
    heads = config.get("num_attention_heads", 16)
    return {"heads": heads, "dim": heads * config.get("attention_head_dim", 72)}


def _write_width(c: DiT) -> dict[str, Any]:
    if c.dim % c.heads:
        raise ValueError(f"dim={c.dim} is no multiple of heads={c.heads}")
    return {"num_attention_heads": c.heads, "attention_head_dim": c.dim // c.heads}


def _weights(c: DiT) -> list:
    copies = [tuple(f"transformer_blocks.{i}.norm1.emb.{name}" for i in range(c.depth)) for name in EMBEDDERS]
    return [
        row("pos_embed.proj", "embed.project"),
        *(row(theirs, ours, Copies(c.depth)) for theirs, ours in zip(copies, EMBEDDERS.values(), strict=True)),
        under(
            "transformer_blocks.{i}",
            "blocks.{i}",
            row("norm1.linear", "told"),
            row("attn1.to_q", "mixer.q"),
            row("attn1.to_k", "mixer.k"),
            row("attn1.to_v", "mixer.v"),
            row("attn1.to_out.0", "mixer.o"),
            row("ff.net.0.proj", "ffn.up"),
            row("ff.net.2", "ffn.down"),
        ),
        row("proj_out_1", "heads.noise.norm.told"),
        row("proj_out_2", "heads.noise.proj"),
    ]


EMBEDDERS = {  # theirs are stored again in every block
    "timestep_embedder.linear_1": "conditions.time.up",
    "timestep_embedder.linear_2": "conditions.time.down",
    "class_embedder.embedding_table": "conditions.label.table",
}
GELUS = {"gelu-approximate": "gelu_tanh", "gelu": "gelu"}
HUBS = (
    Hub(
        "dit",
        format="diffusers",
        architectures={"DiTTransformer2DModel": {}},
        weights=_weights,
        inputs={"pixel_values": "hidden_states"},
        outputs={"sample": "heads.noise"},
        config=(
            Lens(("num_attention_heads", "attention_head_dim"), ("heads", "dim"), _read_width, _write_width),
            key("num_layers", "depth", default=28),
            key("sample_size", "image", default=32),
            key("patch_size", "patch", default=2),
            key("in_channels", "channels", default=4),
            key("out_channels", "out", default=Same("channels")),
            key("num_embeds_ada_norm", "classes", default=1000),
            key("activation_fn", "act", GELUS, default="gelu-approximate"),
            key("attention_bias", "bias", default=True),
            key("norm_eps", "eps", default=1e-5),
            quiet("id2label", "label2id", why="the names of the classes, which diffusers keeps beside the model"),
            must("norm_type", "ada_norm_zero"),
            must("norm_elementwise_affine", False),
            must("dropout", 0.0),
            quiet("norm_num_groups", why="for a group norm that no layer of this class has"),
            quiet("upcast_attention", why="how it is computed: the scores of half precision in float32"),
        ),
    ),
)

"""MMDiT (Esser et al., 2024; arXiv:2403.03206), the transformer of Stable Diffusion 3 and 3.5: pictures of texts.

Differs from DiT by: a text in place of a class: its tokens are a second stream beside the picture's, with norms, MLP
and projections of its own, and a block's attention is over both; one vector of the whole text joins the time; places
are cut from the middle of a stored table. In the last block the text is only read. 3.5 norms q and k, and in its first
blocks the picture attends to itself a second time.

```
timestep ── waves ── MLP ─(+)── told ───────────────────────┐
vector of the text ─ MLP ──┘                                │
pixels ── patches + places ──┬─ block x depth ── picture ── adaptive norm ── linear ── patches side by side
states of the text ─ linear ─┘

block:  picture ─┬─ norm ─┐             ┌─ gate ─(+)─┬─ norm ─ MLP ─ gate ─(+)──
                 │        ├─ attention ─┤            └────────────────────┘
        text ────┬─ norm ─┘             └─ gate ─(+)─┬─ norm ─ MLP ─ gate ─(+)──
```
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from anyformer.core.recipe import Recipe
from anyformer.hub.tables.config import Lens, key
from anyformer.hub.tables.several import Swap
from anyformer.hub.tables.weights import Hub, row, under
from anyformer.parts import (
    MLP,
    AdaptiveNorm,
    Attention,
    JointAttention,
    JointBlock,
    LastJointAttention,
    PatchGrid,
    PlainNorm,
    RMSNorm,
    Side,
    Sines2D,
    States,
    Time,
    Unpatch,
    Vector,
)
from anyformer.skeletons.denoiser import Denoiser


@dataclass(frozen=True)
class MMDiT:
    dim: int = 1536
    depth: int = 24
    heads: int = 24
    image: int = 128  # height and width of an autoencoder's cells, or of pixels
    patch: int = 2
    channels: int = 16
    out: int = 16
    text: int = 4096  # width of the text's states
    pooled: int = 2048  # width of the text's vector
    table: int = 192  # rows and columns of the stored places, the largest grid
    qk_norm: bool = False
    dual: tuple[int, ...] = ()  # blocks in which the picture attends to itself, too


def mmdit(c: MMDiT) -> Recipe:
    places = Sines2D.of(base=c.image // c.patch, crop=c.table)
    embed = PatchGrid.of(image=c.image, patch=c.patch, channels=c.channels, positions=places)
    conditions = {"time": Time.of(), "text": Vector.of(width=c.pooled)}
    head = Unpatch.of(patch=c.patch, channels=c.out, norm=AdaptiveNorm.of(norm=PlainNorm.of()))
    blocks = [block(c, i in c.dual, i == c.depth - 1) for i in range(c.depth)]
    return Denoiser.of(c.dim, embed, conditions, blocks, head, text=States.of(width=c.text))


def block(c: MMDiT, dual: bool, last: bool) -> Recipe:
    norm = RMSNorm.of(eps=1e-6) if c.qk_norm else None
    own = Attention.of(heads=c.heads, bias=True, norm=norm) if dual else None
    second = AdaptiveNorm.of(norm=PlainNorm.of()) if last else side(None)
    joint = LastJointAttention if last else JointAttention
    return JointBlock.of(joint.of(heads=c.heads, norm=norm), side(own), second)


def side(own: Recipe | None) -> Recipe:
    norm = {"mixer": PlainNorm.of(), "ffn": PlainNorm.of()}
    return Side.of(norm=norm, ffn=MLP.of(act="gelu_tanh"), own=own)


SIZES = {
    # narrow: gates and scales multiply from block to block, and redrawn weights are large
    "tiny": MMDiT(dim=8, depth=2, heads=2, image=8, patch=2, channels=3, out=3, text=10, pooled=6, table=40),
    "mini": MMDiT(
        dim=128, depth=4, heads=4, image=32, patch=4, channels=3, out=3, text=128, pooled=128, table=16, qk_norm=True
    ),
    "sd3-medium": MMDiT(),
    "sd3.5-medium": MMDiT(table=384, qk_norm=True, dual=tuple(range(13))),
    "sd3.5-large": MMDiT(dim=2432, depth=38, heads=38, qk_norm=True),
}
PARAMETERS = {  # trained ones; beside them files hold q of the last block's text, which nothing reads
    "tiny": 6_804,
    "mini": 2_288_784,
    "sd3-medium": 2_025_967_168,  # 2,028,328,000 with it
    "sd3.5-medium": 2_240_810_624,  # 2,243,171,520
    "sd3.5-large": 8_050_710_400,  # 8,056,627,520
}
CASES = {
    "3.5": {"qk_norm": True, "dual": (0,)},
    "odd": {
        "dim": 12,
        "depth": 1,
        "heads": 3,
        "image": 9,
        "patch": 3,
        "channels": 1,
        "out": 2,
        "text": 7,
        "pooled": 5,
        "table": 6,
        "qk_norm": True,
        "dual": (0,),
    },
}


def first_weights(c: MMDiT) -> dict[str, float]:
    """DiT's sizes for the same parts: Xavier's rule for every matrix (q, k and v are one), small embeddings of time and
    text."""

    def xavier(rows: int, columns: int) -> float:
        return (2 / (rows + columns)) ** 0.5

    sizes = {"embed.project": xavier(c.dim, c.patch**2 * c.channels), "conditions.*.*": 0.02}
    sizes |= {"text.project": xavier(c.dim, c.text), "blocks.*.*.ffn.*": xavier(4 * c.dim, c.dim)}
    sizes |= {"blocks.*.*.*.[qkv]": xavier(3 * c.dim, c.dim), "blocks.*.*.*.o": xavier(c.dim, c.dim)}
    return sizes


def _read_width(config: Mapping[str, Any]) -> dict[str, Any]:
    heads, each = config.get("num_attention_heads", 18), config.get("attention_head_dim", 64)
    told = config.get("caption_projection_dim", 1152)
    if told != heads * each:
        raise ValueError(
            f"caption_projection_dim is {told}; by num_attention_heads={heads} and attention_head_dim={each} both "
            f"streams are {heads * each} wide"
        )
    return {"heads": heads, "dim": heads * each}


def _write_width(c: MMDiT) -> dict[str, Any]:
    if c.dim % c.heads:
        raise ValueError(f"dim={c.dim} is no multiple of heads={c.heads}")
    return {
        "num_attention_heads": c.heads,
        "attention_head_dim": c.dim // c.heads,
        "caption_projection_dim": c.dim,
    }


def _weights(c: MMDiT) -> list:
    last = c.depth - 1
    return [
        under("pos_embed", "embed", row("proj", "project"), row("pos_embed", "positions.table")),
        under(
            "time_text_embed",
            "conditions",
            row("timestep_embedder.linear_1", "time.up"),
            row("timestep_embedder.linear_2", "time.down"),
            row("text_embedder.linear_1", "text.up"),
            row("text_embedder.linear_2", "text.down"),
        ),
        row("context_embedder", "text.project"),
        row(f"transformer_blocks.{last}.norm1_context.linear", f"blocks.{last}.second.told", Swap()),
        under("transformer_blocks.{i}", "blocks.{i}", *BLOCK),
        row("norm_out.linear", "heads.noise.norm.told", Swap()),
        row("proj_out", "heads.noise.proj"),
    ]


BLOCK = (
    row("norm1.linear", "first.told"),
    row("norm1_context.linear", "second.told"),
    *(row(f"attn.to_{n}", f"mixer.first.{n}") for n in "qkv"),
    *(row(f"attn.add_{n}_proj", f"mixer.second.{n}") for n in "qkv"),
    row("attn.to_out.0", "mixer.first.o"),
    row("attn.to_add_out", "mixer.second.o"),
    *(row(f"attn.norm_{n}", f"mixer.first.norm.{n}") for n in "qk"),
    *(row(f"attn.norm_added_{n}", f"mixer.second.norm.{n}") for n in "qk"),
    *(row(f"attn2.to_{n}", f"first.own.{n}") for n in "qkv"),
    row("attn2.to_out.0", "first.own.o"),
    *(row(f"attn2.norm_{n}", f"first.own.norm.{n}") for n in "qk"),
    row("ff.net.0.proj", "first.ffn.up"),
    row("ff.net.2", "first.ffn.down"),
    row("ff_context.net.0.proj", "second.ffn.up"),
    row("ff_context.net.2", "second.ffn.down"),
)
WIDTHS = ("num_attention_heads", "attention_head_dim", "caption_projection_dim")
HUBS = (
    Hub(
        "mmdit",
        format="diffusers",
        architectures={"SD3Transformer2DModel": {}},
        weights=_weights,
        inputs={"pixel_values": "hidden_states"},
        outputs={"sample": "heads.noise"},
        config=(
            Lens(WIDTHS, ("heads", "dim"), _read_width, _write_width),
            key("num_layers", "depth", default=18),
            key("sample_size", "image", default=128),
            key("patch_size", "patch", default=2),
            key("in_channels", "channels", default=16),
            key("out_channels", "out", default=16),
            key("joint_attention_dim", "text", default=4096),
            key("pooled_projection_dim", "pooled", default=2048),
            key("pos_embed_max_size", "table", default=96),
            key("dual_attention_layers", "dual", default=()),
            key("qk_norm", "qk_norm", {None: False, "rms_norm": True}, default=False),
        ),
    ),
)

"""Latent attention is that of DeepSeek-V2 and V3 in transformers: outputs, gradients, token by token."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from torch import nn

from anyformer.parts import LatentAttention, Rotary
from anyformer.parts.positions import YaRN
from tests.parts.mixing import run, step_by_step

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8, "mscale": 0.7, "mscale_all_dim": 1.2}
THEIRS: dict[str, dict[str, Any]] = {
    "interleaved": {"q_lora_rank": 7},
    "halves, biases, queries of x": {"q_lora_rank": None, "rope_interleave": False, "attention_bias": True},
    "wide values, biases, YaRN": {"q_lora_rank": 5, "attention_bias": True, "v_head_dim": 20, "rope_parameters": YARN},
}


@pytest.mark.parametrize("name", THEIRS)
def test_is_deepseek_v3s(name: str) -> None:
    pytest.importorskip("transformers", reason="needs transformers")
    from transformers.models.deepseek_v3.configuration_deepseek_v3 import DeepseekV3Config
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Attention, DeepseekV3RotaryEmbedding

    options: dict[str, Any] = {"rope_parameters": {"rope_type": "default"}, "rope_interleave": True, "v_head_dim": 6}
    options |= THEIRS[name]
    options["rope_parameters"] = {"rope_theta": 100.0, **options["rope_parameters"]}
    config = DeepseekV3Config(
        hidden_size=12, num_attention_heads=3, num_key_value_heads=3, kv_lora_rank=5, qk_nope_head_dim=4,
        qk_rope_head_dim=8, max_position_embeddings=32, attn_implementation="eager", **options,
    )  # fmt: skip
    theirs = DeepseekV3Attention(config, 0)
    compare(config, theirs, lambda x, p: DeepseekV3RotaryEmbedding(config)(x, p))


def test_is_deepseek_v2s() -> None:
    pytest.importorskip("transformers", reason="needs transformers")
    from transformers.models.deepseek_v2.configuration_deepseek_v2 import DeepseekV2Config
    from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2Attention, DeepseekV2RotaryEmbedding

    config = DeepseekV2Config(
        hidden_size=12, num_attention_heads=3, num_key_value_heads=3, kv_lora_rank=6, qk_nope_head_dim=4,
        qk_rope_head_dim=8, v_head_dim=6, q_lora_rank=7, attn_implementation="eager",
        rope_parameters={"rope_type": "default", "rope_theta": 100.0},
    )  # fmt: skip
    config.rope_interleave = True
    compare(config, DeepseekV2Attention(config, 0), lambda x, p: DeepseekV2RotaryEmbedding(config)(x, p))


NAMES = {"q_a_proj": "q_down", "q_b_proj": "q", "q_proj": "q", "q_a_layernorm": "norm.q", "kv_a_layernorm": "norm.kv"}
NAMES |= {"kv_a_proj_with_mqa": "kv_down", "kv_b_proj": "kv", "o_proj": "o"}


def compare(config: Any, theirs: nn.Module, angles: Any) -> None:
    """Output and gradients, one of two rows padded on the left; then token by token."""
    rope = config.rope_parameters
    scaling = None
    if rope["rope_type"] == "yarn":
        scaling = YaRN(4.0, 8, mscale=rope["mscale"], mscale_all=rope["mscale_all_dim"])
    ours: Any = LatentAttention.of(
        heads=3, kv_rank=config.kv_lora_rank, q_rank=config.q_lora_rank, nope_dim=4, rope_dim=8,
        value_dim=config.v_head_dim, bias=config.attention_bias, scale=cast(float, theirs.scaling),
        positions=Rotary.of(theta=100.0, scaling=scaling, pairs="adjacent" if config.rope_interleave else "half"),
    ).build(12)  # fmt: skip
    with torch.no_grad():
        for p in theirs.parameters():
            p.normal_(0.0, 0.4)
    named = {f"{NAMES[n.rpartition('.')[0]]}.{n.rpartition('.')[2]}": n for n in theirs.state_dict()}
    ours.load_state_dict({our: theirs.state_dict()[their] for our, their in named.items()})
    keep = torch.ones(2, 11, dtype=torch.bool)
    keep[1, :4] = False
    x = (torch.randn(2, 11, 12) * keep[..., None]).requires_grad_()
    seen = torch.ones(11, 11, dtype=torch.bool).tril() & keep[:, None, None]
    bias = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
    at = (keep.long().cumsum(1) - 1).clamp(min=0)
    expected = theirs(x, position_embeddings=angles(x, at), attention_mask=bias)[0][keep]
    found = run(ours, x, keep=keep)[keep]
    torch.testing.assert_close(found, expected)
    out, inner = torch.randn_like(found), dict(theirs.named_parameters())
    mine = dict(ours.named_parameters())
    wanted = torch.autograd.grad((expected * out).sum(), [x, *(inner[named[n]] for n in mine)])
    slopes = torch.autograd.grad((found * out).sum(), [x, *mine.values()])
    torch.testing.assert_close(
        dict(zip(["x", *mine], slopes, strict=True)), dict(zip(["x", *mine], wanted, strict=True))
    )
    with torch.no_grad():
        torch.testing.assert_close(step_by_step(ours.eval(), x[:1], [1] * 11)[0], expected[:11])

"""A file whose rotary positions are stretched beyond its trained length is read to where the stretch leads."""

import json
from pathlib import Path

import pytest
import torch
import transformers

from anyformer.hub import load, save

SIZES = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 48, "vocab_size": 96,
}  # fmt: skip
STRETCHES = {
    "linear": ({"type": "linear", "factor": 4.0}, 32, 128),
    "linear, a broken factor": ({"rope_type": "linear", "factor": 2.5}, 33, 82),
    "yarn, as Qwen2.5 says it": ({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}, 32, 128),
    "yarn without the trained length": ({"rope_type": "yarn", "factor": 4.0}, 32, 128),
    "yarn, counted in": ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}, 128, 128),
    "llama3, counted in": (
        {"rope_type": "llama3", "factor": 4.0, "original_max_position_embeddings": 32, "low_freq_factor": 1.0,
         "high_freq_factor": 4.0}, 128, 128,
    ),
    "none": (None, 32, 32),
}  # fmt: skip
CLASSES = {
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
    "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
    "mixtral": (transformers.MixtralConfig, transformers.MixtralForCausalLM),
}


@pytest.mark.parametrize("said", STRETCHES)
@pytest.mark.parametrize("page", CLASSES)
def test_a_text_as_long_as_the_stretch_is_read_as_transformers_reads_it(tmp_path: Path, page: str, said: str) -> None:
    stretch, places, reach = STRETCHES[said]
    config, model = CLASSES[page]
    torch.manual_seed(0)
    own = {"head_dim": 8} if page == "mixtral" else {}  # without it, theirs cannot compute yarn
    model(config(max_position_embeddings=places, **SIZES, **own)).save_pretrained(tmp_path)
    words = json.loads((tmp_path / "config.json").read_text())
    words.pop("rope_parameters", None)
    (tmp_path / "config.json").write_text(json.dumps({**words, "rope_theta": 10000.0, "rope_scaling": stretch}))
    ours = load(tmp_path)
    assert ours.context == reach
    ids = torch.randint(3, 90, (1, reach))
    with torch.no_grad():
        expected = model.from_pretrained(tmp_path, attn_implementation="eager").eval()(ids).logits
        torch.testing.assert_close(ours(ids).logits, expected, rtol=1e-4, atol=1e-4)
        with pytest.raises(ValueError, match=rf"{reach}"):
            ours(torch.cat((ids, ids[:, :1]), 1))
    save(ours, tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text())["max_position_embeddings"] == places
    assert load(tmp_path / "again").context == reach

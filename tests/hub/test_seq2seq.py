"""Files of Marian and BART as they are published: older keys, sines that are stored, copies of the one table."""

import json
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import anyformer as af
from anyformer.parts import Learned, Sinusoidal

torch.set_num_threads(1)

OLD: dict[str, Any] = {
    "_num_labels": 3, "add_bias_logits": False, "add_final_layer_norm": False, "classif_dropout": 0.0,
    "classifier_dropout": 0.0, "max_length": 512, "num_beams": 6, "num_hidden_layers": 2, "normalize_before": False,
    "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}, "decoder_layerdrop": 0.0, "init_std": 0.02,
}  # fmt: skip
MARIAN = {**OLD, "static_position_embeddings": True, "extra_pos_embeddings": 128, "normalize_embedding": False,
          "bad_words_ids": [[5]]}  # fmt: skip
BART = {**OLD, "force_bos_token_to_be_generated": False, "normalize_embedding": True, "no_repeat_ngram_size": 3,
        "early_stopping": True, "task_specific_params": {"summarization": {"num_beams": 4}}}  # fmt: skip


def published(folder, page, keys, **changes):
    """A folder as it was published, and the model that it came from."""
    model = af.build(page, "tiny", seed=0, **changes)
    torch.nn.init.normal_(model.head.offset)
    model.save(folder)
    config = json.loads((folder / "config.json").read_text())
    for key in ("decoder_vocab_size", "tie_word_embeddings"):
        config.pop(key, None)
    (folder / "config.json").write_text(json.dumps(config | keys))
    return model


@pytest.mark.parametrize(("page", "keys"), [("transformer", MARIAN), ("bart", BART)])
def test_older_files_open_and_come_back(tmp_path, page, keys):
    model = published(tmp_path, page, keys)
    tensors = load_file(tmp_path / "model.safetensors")
    for side in ("encoder", "decoder"):
        tensors[f"model.{side}.embed_tokens.weight"] = tensors["model.shared.weight"].clone()
        if page == "transformer":
            tensors[f"model.{side}.embed_positions.weight"] = Sinusoidal(32)(torch.arange(64))
    save_file(tensors, tmp_path / "model.safetensors")
    again = af.load(tmp_path)
    x = {"input_ids": torch.tensor([[1, 2, 3]]), "decoder_input_ids": torch.tensor([[5, 7]])}
    assert torch.equal(again(**x).logits, model.eval()(**x).logits)
    assert "head.offset" in dict(again.named_buffers()) and not again.head.offset.requires_grad
    again.save(tmp_path / "back")
    assert json.loads((tmp_path / "back" / "config.json").read_text()) == json.loads(
        (tmp_path / "config.json").read_text()
    )


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"decoder_attention_heads": 2}, r"'encoder_attention_heads': 4, 'decoder_attention_heads': 2.*one value"),
        ({"decoder_ffn_dim": None}, "lacks 'decoder_ffn_dim'"),
        ({"decoder_vocab_size": 99}, "differ"),
        ({"encoder_layerdrop": 0.1}, "'encoder_layerdrop' is 0.1"),
        ({"share_encoder_decoder_embeddings": False}, "supports only True"),
    ],
)
def test_what_the_page_cannot_do_is_refused(tmp_path, keys, message):
    published(tmp_path, "transformer", {**MARIAN, **keys})
    with pytest.raises(ValueError, match=message):
        af.load(tmp_path)


def test_a_bare_bart_has_no_offset(tmp_path):
    af.build("bart", "tiny", offset=False, seed=0).save(tmp_path)
    names = load_file(tmp_path / "model.safetensors")
    assert "shared.weight" in names and not any("final_logits_bias" in n or n.startswith("model.") for n in names)
    assert af.load(tmp_path).config.offset is False


@pytest.mark.parametrize("dim", [6, 7])
def test_sines_are_those_of_the_paper(dim):
    """Column by column from the formula: the paper writes sin and cos in turns, here they are two halves."""
    places = torch.tensor([[0, 1, 511], [7, 7, 1023]])
    found = Sinusoidal(dim)(places)
    for column in range(dim):
        angle = places.double() / 10000 ** (2 * (column // 2) / dim)
        expected = angle.cos() if column % 2 else angle.sin()
        at = column // 2 + (column % 2) * ((dim + 1) // 2)
        torch.testing.assert_close(found[..., at], expected.float(), rtol=0, atol=1e-7)


def test_an_offset_skips_rows():
    part = Learned(4, context=3, offset=2)
    assert torch.equal(part(torch.tensor([0, 2])), part.weight[[2, 4]]) and len(part.weight) == 5

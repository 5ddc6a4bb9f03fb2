"""Folders of CTranslate2: what a converter wrote is read exactly, and a damaged or other file is refused by name."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import anyformer as af
from anyformer.core import pages
from anyformer.hub.formats.ct2 import CTranslate2, config_of, vocabulary
from anyformer.hub.formats.guard import FileRefused
from anyformer.hub.processors import SoundProcessor
from anyformer.hub.tables.weights import links

torch.set_num_threads(1)
CODES = {torch.float32: 0, torch.int8: 1, torch.int16: 2, torch.int32: 3, torch.float16: 4, torch.bfloat16: 5}
SETTINGS = {
    "decoder/activation": (3, torch.int8), "decoder/alibi": (0, torch.int8),
    "decoder/alignment_heads": (1, torch.int16), "decoder/alignment_layer": (-1, torch.int16),
    "decoder/num_heads": (4, torch.int16), "decoder/pre_norm": (1, torch.int8),
    "decoder/scale_embeddings": (0, torch.int8), "decoder/start_from_zero_embedding": (0, torch.int8),
    "encoder/num_heads": (4, torch.int16),
}  # fmt: skip
ALIASES = {"decoder/projection/weight": "decoder/embeddings/weight"}
TOKENS = ["a", "b", "<|endoftext|>", "<|startoftranscript|>", *(f"t{i}" for i in range(124))]


def text(value: str) -> bytes:
    return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"


def variable(name: str, tensor: Tensor) -> bytes:
    raw = tensor.contiguous().view(torch.uint8).numpy().tobytes() if tensor.ndim else tensor.numpy().tobytes()
    sizes = b"".join(struct.pack("<I", n) for n in tensor.shape)
    return text(name) + bytes([tensor.ndim]) + sizes + bytes([CODES[tensor.dtype]]) + struct.pack("<I", len(raw)) + raw


def binary(tensors: Mapping[str, Tensor], aliases: Mapping[str, str] = ALIASES, settings: Any = SETTINGS) -> bytes:
    every = {**tensors, **{name: torch.tensor(value, dtype=kind) for name, (value, kind) in settings.items()}}
    out = struct.pack("<I", 6) + text("WhisperSpec") + struct.pack("<II", 3, len(every))
    out += b"".join(variable(name, tensor) for name, tensor in every.items())
    return out + struct.pack("<I", len(aliases)) + b"".join(text(a) + text(n) for a, n in aliases.items())


@pytest.fixture(scope="module")
def model() -> Any:
    made = af.build("whisper", "tiny", seed=0)
    with torch.no_grad():
        for tensor in made.state_dict().values():
            tensor.normal_(std=0.3)
    return made.eval()


def tensors_of(model: Any) -> dict[str, Tensor]:
    """The tensors under the names of CTranslate2."""
    hub = next(h for h in pages.page("whisper").module.HUBS if h.format == "ct2")
    state = model.state_dict()
    found: dict[str, Tensor] = {}
    for link in links(hub.weights(model.config), state):
        found |= {} if link.tied else link.write(state)
    renamed = {}
    for name, tensor in found.items():
        if "norm." in name:
            name = name.replace("norm.weight", "norm.gamma").replace("norm.bias", "norm.beta")
        renamed[name.replace(".", "/")] = tensor.clone()
    return renamed


def written(folder: Path, content: bytes, config: Any = None) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "model.bin").write_bytes(content)
    (folder / "vocabulary.json").write_text(json.dumps(TOKENS))
    said = {"suppress_ids": [5, 6], "suppress_ids_begin": [7], "alignment_heads": [[1, 0]], "lang_ids": [8]}
    (folder / "config.json").write_text(json.dumps(said if config is None else config))
    return folder


def test_a_folder_is_read_exactly(model: Any, tmp_path: Path) -> None:
    found = af.load(written(tmp_path, binary(tensors_of(model))))
    assert found.config == model.config and found.recipe == model.recipe
    assert all(torch.equal(t, model.state_dict()[n]) for n, t in found.state_dict().items())
    assert found.origin["generation"] == {
        "suppress_tokens": [5, 6], "begin_suppress_tokens": [7], "alignment_heads": [[1, 0]]
    }  # fmt: skip
    assert found.processor is None  # of 0.18 seconds; that of 30 seconds is assumed
    assert {line.status for line in found.ledger.config} == {"used", "fixed", "ignored"}
    derived = [line.name for line in found.ledger.tensors if line.status == "derived"]
    assert derived == ["decoder.projection.weight"]


def test_marks_of_speech_come_from_the_vocabulary(model: Any, tmp_path: Path) -> None:
    written(tmp_path, binary(tensors_of(model)))
    special = ["<|startofprev|>", "<|notimestamps|>", "<|transcribe|>", "<|translate|>", "<|de|>", "<|yue|>"]
    (tmp_path / "vocabulary.json").write_text(json.dumps([*TOKENS[: -len(special)], *special]))
    found = af.load(tmp_path).origin["generation"]
    assert found["decoder_start_token_id"] == 3 and found["eos_token_id"] == 2 and found["prev_sot_token_id"] == 122
    assert found["no_timestamps_token_id"] == 123 and found["is_multilingual"] is False and "lang_to_id" not in found


def test_saved_it_is_a_directory_of_transformers(model: Any, tmp_path: Path) -> None:
    found = af.load(written(tmp_path / "a", binary(tensors_of(model))))
    found.processor = SoundProcessor(mels=7)
    assert found.save(tmp_path / "b") == "whisper"
    again = af.load(tmp_path / "b")
    assert all(torch.equal(t, model.state_dict()[n]) for n, t in again.state_dict().items())
    assert again.origin["generation"] == found.origin["generation"] and again.processor == found.processor
    theirs = pytest.importorskip("transformers").WhisperForConditionalGeneration.from_pretrained(tmp_path / "b").eval()
    features, ids = torch.randn(2, 7, 18), torch.tensor([[3, 9, 8], [3, 1, 2]])
    with torch.no_grad():
        expected = theirs(input_features=features, decoder_input_ids=ids).logits
        torch.testing.assert_close(found(input_features=features, decoder_input_ids=ids).logits, expected)


@pytest.mark.slow
def test_a_folder_passes_the_contract(model: Any, tmp_path: Path) -> None:
    """Its numbers are those of transformers on the directory that is saved of it."""
    from anyformer.contract import verify

    report = verify(str(written(tmp_path, binary(tensors_of(model)))))
    assert report.ok and {row.check for row in report.rows if row.result == "pass"} >= {"parity", "ledger is complete"}


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_half_precision_stays_as_it_is(kind: torch.dtype, model: Any, tmp_path: Path) -> None:
    halves = {name: tensor.to(kind) for name, tensor in tensors_of(model).items()}
    found = af.load(written(tmp_path, binary(halves)))
    assert all(torch.equal(t, model.state_dict()[n].to(kind)) for n, t in found.state_dict().items())


@pytest.mark.parametrize("kind", [torch.int8, torch.int16])
def test_whole_numbers_are_divided_by_their_scale(kind: torch.dtype, model: Any, tmp_path: Path) -> None:
    stored, expected = {}, {}
    for name, tensor in tensors_of(model).items():
        if name.endswith("weight"):
            most = tensor.flatten(1).abs().amax(1) if kind == torch.int8 else tensor.abs().max()
            scale = torch.iinfo(kind).max / most
            wide = scale.reshape(-1, *[1] * (tensor.ndim - 1)) if scale.ndim else scale
            stored[name], stored[f"{name}_scale"] = (tensor * wide).round().to(kind), scale
            expected[name] = stored[name].float() / wide
            assert (expected[name] - tensor).abs().max() <= 0.51 * (1 / wide).max()
        else:
            stored[name] = tensor
    file = CTranslate2(written(tmp_path, binary(stored)))
    for name, tensor in expected.items():
        assert torch.equal(file.get(name.replace("/", ".")), tensor)
    assert not [name for name in file.names() if name.endswith("_scale")]
    assert af.load(tmp_path).embed.tokens.weight.dtype == torch.float32


def test_equal_tensors_may_be_stored_once(model: Any, tmp_path: Path) -> None:
    tensors = tensors_of(model)
    first, second = "encoder/layer_0/ffn/linear_1/bias", "encoder/layer_1/ffn/linear_1/bias"
    tensors[second] = tensors.pop(second) * 0 + tensors[first]
    whole = af.load(written(tmp_path / "a", binary(tensors))).state_dict()
    del tensors[second]
    shared = af.load(written(tmp_path / "b", binary(tensors, {**ALIASES, second: first}))).state_dict()
    assert all(torch.equal(whole[n], shared[n]) for n in whole)


def without(name: str) -> Any:
    return lambda t: t.pop(name)


def keys_with_bias(tensors: dict[str, Tensor]) -> None:
    tensors["decoder/layer_1/self_attention/linear_0/bias"][40] = 1.0


def keys_read_from_elsewhere(tensors: dict[str, Tensor]) -> None:
    tensors["decoder/layer_1/attention/linear_1/bias"][3] = 1.0


@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        (without("encoder/conv2/weight"), {}, r"encoder\.conv2\.weight"),
        (without("encoder/conv1/bias"), {}, r"the config lacks 'encoder.conv1.bias.shape'"),
        (without("decoder/layer_0/attention/layer_norm/beta"), {}, r"attention\.layer_norm\.weight|layer_norm\.b"),
        (lambda t: t.update({"encoder/more/weight": torch.zeros(2)}), {}, r"encoder\.more\.weight"),
        (keys_with_bias, {}, r"decoder.layer_1.self_attention.linear_0.bias.*its keys have a bias, and this page has"),
        (keys_read_from_elsewhere, {}, r"decoder.layer_1.attention.linear_1.bias.*its keys have a bias"),
        (lambda t: None, {"decoder/pre_norm": (0, torch.int8)}, "'decoder.pre_norm' is 0; this page"),
        (lambda t: None, {"decoder/activation": (0, torch.int8)}, "'decoder.activation' is 0"),
        (lambda t: None, {"encoder/num_heads": (2, torch.int16)}, r"config keys .*num_heads.* differ"),
        (lambda t: None, {"decoder/no_such": (1, torch.int8)}, "unknown config keys: decoder.no_such=1"),
    ],
)  # fmt: skip
def test_another_model_is_refused_by_name(change: Any, settings: Any, message: str, model: Any, tmp_path: Path) -> None:
    tensors = tensors_of(model)
    change(tensors)
    with pytest.raises(ValueError, match=message):
        af.load(written(tmp_path, binary(tensors, settings={**SETTINGS, **settings})))


def test_a_folder_without_its_start_token_or_vocabulary_is_refused(model: Any, tmp_path: Path) -> None:
    written(tmp_path, binary(tensors_of(model)))
    (tmp_path / "vocabulary.json").write_text(json.dumps(["a", "b"]))
    with pytest.raises(ValueError, match=r"the config lacks 'token <\|startoftranscript\|>'"):
        af.load(tmp_path)
    (tmp_path / "vocabulary.json").write_text('{"a": 1}')
    with pytest.raises(ValueError, match=r"vocabulary\.json: content: expected a list of tokens"):
        af.load(tmp_path)
    (tmp_path / "vocabulary.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no vocabulary\.json or vocabulary\.txt"):
        af.load(tmp_path)
    (tmp_path / "vocabulary.txt").write_text("\n".join(TOKENS) + "\n")
    assert vocabulary(tmp_path) == TOKENS and af.load(tmp_path).config == model.config


def test_a_directory_with_safetensors_is_none(model: Any, tmp_path: Path) -> None:
    model.save(tmp_path)
    (tmp_path / "model.bin").write_bytes(b"left over")
    assert af.load(tmp_path).origin["format"] == "hf"


def test_another_kind_is_refused(model: Any, tmp_path: Path) -> None:
    other = binary(tensors_of(model)).replace(b"\x0c\0WhisperSpec", b"\x0c\0WhisperZpec")
    with pytest.raises(ValueError, match=r"no page reads the kind 'WhisperZpec' .did you mean WhisperSpec"):
        af.load(written(tmp_path, other))


SMALL = {"encoder/a/weight": torch.ones(2, 3)}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "size: expected at least 4 bytes"),
        (struct.pack("<I", 5), "version: expected 6; convert the model again"),
        (struct.pack("<I", 6), "length of kind: expected at most the 0 bytes left"),
        (struct.pack("<IH", 6, 9) + b"abc", "kind: expected at most the 3 bytes left"),
        (struct.pack("<IH", 6, 3) + b"abc", "kind: expected text with a 0 byte at its end alone"),
        (struct.pack("<I", 6) + text("a") + struct.pack("<II", 1, 2**31), "number of variables: expected at most 200,"),
        (binary(SMALL)[:60], "expected at most the"),
        (binary(SMALL, {}) + b"x", "end: expected the end of the file at byte .* got 1 more"),
        (binary(SMALL, {"b": "a"}), "alias b: expected another name of one variable"),
        (binary({**SMALL, "encoder/a/weight_scale": torch.ones(2)}, {}), "expected whole numbers with a scale"),
        (binary({"a/weight": torch.ones(2, 3).char()}, {}), "expected whole numbers with a scale"),
        (binary({"a/weight": torch.ones(2, 3).char(), "a/weight_scale": torch.ones(3)}, {}), r"float32 of shape \(\)"),
        (binary({"a/weight_scale": torch.ones(3)}, {}), "expected a scale beside its weight"),
    ],
    ids=range(13),
)  # fmt: skip
def test_a_damaged_file_is_refused_before_memory_is_spent(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(content)
    with pytest.raises(FileRefused, match=rf"model\.bin.*{message}"):
        CTranslate2(tmp_path)


def test_a_wrong_type_or_number_of_bytes_is_refused(tmp_path: Path) -> None:
    good = binary(SMALL, {})
    at = good.index(b"weight\0") + 7
    for place, value, message in ((at, 9, "axes: expected at most 8"), (at + 9, 6, "type: expected a number below 6"),
                                  (at + 10, 25, "bytes: expected 24 of shape")):  # fmt: skip
        bad = bytearray(good)
        bad[place] = value
        (tmp_path / "model.bin").write_bytes(bad)
        with pytest.raises(FileRefused, match=message):
            CTranslate2(tmp_path)


def test_no_cut_of_a_file_is_anything_but_refused(tmp_path: Path) -> None:
    whole = binary(SMALL)
    for end in range(0, len(whole), 7):
        (tmp_path / "model.bin").write_bytes(whole[:end])
        with pytest.raises(FileRefused):
            CTranslate2(tmp_path)


@pytest.mark.parametrize("quantisation", [None, "float16", "bfloat16", "int8", "int8_float16", "int16"])
def test_files_of_the_converter_are_read(quantisation: str | None, model: Any, tmp_path: Path) -> None:
    converters = pytest.importorskip("ctranslate2.converters.transformers", reason="needs ctranslate2")
    specs = pytest.importorskip("ctranslate2.specs.whisper_spec")
    transformers = pytest.importorskip("transformers")
    model.save(tmp_path / "hf", overwrite=True)
    theirs = transformers.WhisperForConditionalGeneration.from_pretrained(tmp_path / "hf").requires_grad_(False)
    loader, spec = converters.WhisperLoader(), specs.WhisperSpec(2, 4, 3, 4)
    loader.set_encoder(spec.encoder, theirs.model.encoder)
    loader.set_decoder(spec.decoder, theirs.model.decoder)
    loader.set_linear(spec.decoder.projection, theirs.proj_out)
    spec.register_vocabulary(TOKENS)
    spec.validate()
    spec.optimize(quantization=quantisation)
    (tmp_path / "ct2").mkdir()
    spec.save(str(tmp_path / "ct2"))
    found = af.load(tmp_path / "ct2", dtype=torch.float32).state_dict()
    loose = {None: 0.0, "float16": 1e-3, "bfloat16": 1e-2, "int16": 1e-3}.get(quantisation, 1e-2)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=loose * float(tensor.abs().max()))
    assert config_of(tmp_path / "ct2", CTranslate2(tmp_path / "ct2"), ["tokens"])["tokens"] == 128
    assert np.isfinite(found["source.places"].numpy()).all()

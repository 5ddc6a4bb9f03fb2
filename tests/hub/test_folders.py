"""The files beside the weights: each key acts, is listed with its reason, or is refused; nothing is lost by saving."""

import itertools
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Core

import anyformer as af
from anyformer.generate import stream
from anyformer.hub.formats.gguf import open_gguf
from anyformer.hub.text.tokenizer import Tokenizer

torch.set_num_threads(1)
PLAIN = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}


def writer(name: str, tmp_path: Path, **said: Any) -> Path:
    """A model that writes something else at each place, with these words in its generation_config.json."""
    model = af.build(name, "tiny", seed=0)
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim > 1:
                p.normal_(0.0, 0.3, generator=draw)
    model.save(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps(said))
    return tmp_path


RULES: dict[str, dict[str, Any]] = {
    "none": {},
    "bad words": {"bad_words_ids": [[3], [7, 9]]},
    "suppressed": {"suppress_tokens": list(range(0, 128, 2))},
    "suppressed first": {"begin_suppress_tokens": list(range(0, 128, 2))},
    "first and last": {"forced_bos_token_id": 11, "forced_eos_token_id": 12},
    "written once": {"no_repeat_ngram_size": 2},
    "least": {"min_length": 9, "eos_token_id": list(range(40))},
    "least new": {"min_new_tokens": 4, "eos_token_id": list(range(40))},
    "all": {"bad_words_ids": [[3], [7, 9]], "no_repeat_ngram_size": 1, "min_new_tokens": 3, "eos_token_id": [5, 6]},
}


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", ["gpt", "bart"])
def test_rules_of_generation_act_as_in_transformers(name, rule, beams, tmp_path):
    transformers = pytest.importorskip("transformers")
    said = {"eos_token_id": 2, "pad_token_id": 1, "bos_token_id": 0} | RULES[rule]
    said |= {"decoder_start_token_id": 2} if name == "bart" else {}
    folder = writer(name, tmp_path, **said)
    auto = transformers.AutoModelForSeq2SeqLM if name == "bart" else transformers.AutoModelForCausalLM
    theirs, prompt = auto.from_pretrained(folder).eval(), [20, 21, 30, 9]
    ours = af.load(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = theirs.generate(torch.tensor([prompt]), max_new_tokens=7, num_beams=beams, do_sample=False)[0].tolist()
    found = found[1 if name == "bart" else len(prompt) :]
    ends = said["eos_token_id"] if isinstance(said["eos_token_id"], list) else [said["eos_token_id"]]
    found = found[: next((i for i, t in enumerate(found) if t in ends), len(found))]
    assert ours.generate([prompt], max_new_tokens=7, num_beams=beams)[0] == found
    lines = {line.key: line.status for line in ours.ledger.files["generation_config.json"]}
    assert lines.keys() == said.keys() and all(lines[key] == "used" for key in RULES[rule])


def test_what_generate_cannot_do_is_listed_and_refused_there_only(tmp_path):
    folder = writer("gpt", tmp_path, penalty_alpha=0.6, temperature=0.5)
    model = af.load(folder)
    lines = {line.key: (line.status, line.detail) for line in model.ledger.files["generation_config.json"]}
    assert lines["penalty_alpha"][0] == "refused" and "option" in lines["temperature"][1]
    with pytest.raises(ValueError, match=r"penalty_alpha.*ignore"):
        model.generate([[1, 2]], max_new_tokens=2)
    assert af.load(folder, ignore=["penalty_alpha"]).generate([[1, 2]], max_new_tokens=2)


@pytest.mark.parametrize(
    ("key", "value"), [("eos_token_id", "2"), ("eos_token_id", [2, None]), ("bad_words_ids", [3]), ("no_such_key", 1)]
)
def test_a_word_about_generation_that_makes_no_sense_is_named(key, value, tmp_path):
    with pytest.raises(ValueError, match=key):
        af.load(writer("gpt", tmp_path, **{key: value}))


def byte_level(tmp_path: Path, **config: Any) -> Path:
    core = Core(models.BPE(vocab={c: i for i, c in enumerate(pre_tokenizers.ByteLevel.alphabet())}, merges=[]))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    core.add_special_tokens([AddedToken("<s>", normalized=False)])
    core.save(str(tmp_path / "tokenizer.json"))
    said = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", **config}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(said))
    return tmp_path


BESIDE: dict[str, dict[str, Any]] = {
    "decoder": {"added_tokens_decoder": {"256": {"content": "<s>", **PLAIN}, "257": {"content": "<a>", **PLAIN}}},
    "additional": {"additional_special_tokens": ["<a>", "<b>"]},
    "extra": {"extra_special_tokens": ["<a>"]},
    "extra by name": {"extra_special_tokens": {"image_token": "<a>"}},
    "split": {"split_special_tokens": True},
    "bos": {"add_bos_token": True, "add_prefix_space": True, "clean_up_tokenization_spaces": False},
    "end": {"eos_token": "<a>", "added_tokens_decoder": {"257": {"content": "<a>", **PLAIN}}},
}


@pytest.mark.parametrize("case", BESIDE)
def test_tokens_beside_tokenizer_json_are_those_of_transformers(case, tmp_path):
    transformers = pytest.importorskip("transformers")
    folder = byte_level(tmp_path, **BESIDE[case])
    ours, theirs = Tokenizer.load(folder), transformers.AutoTokenizer.from_pretrained(folder)
    for text in ("hi<a><s> <b>x", "<a>"):
        assert ours.encode(text) == theirs(text)["input_ids"]
    lines = {line.key: line.status for line in ours.ledger["tokenizer_config.json"]}
    assert lines.keys() >= BESIDE[case].keys()
    if case == "end":
        assert ours.eos_ids == {257}
    ours.save(tmp_path / "again")
    again = Tokenizer.load(tmp_path / "again")
    assert again.encode("hi<a><s> <b>x") == ours.encode("hi<a><s> <b>x")
    assert json.loads((tmp_path / "again" / "tokenizer_config.json").read_text()).items() >= BESIDE[case].items()


@pytest.mark.parametrize("lower", [True, False, None])
@pytest.mark.parametrize("kind", ["BertTokenizer", "PreTrainedTokenizerFast"])
def test_small_letters_are_those_of_transformers(kind, lower, tmp_path):
    transformers = pytest.importorskip("transformers")
    core = Core(models.WordPiece({"[UNK]": 0, "cat": 1, "Cat": 2, "the": 3}, unk_token="[UNK]"))
    core.normalizer, core.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    core.save(str(tmp_path / "tokenizer.json"))
    said = {"tokenizer_class": kind, "unk_token": "[UNK]"} | ({} if lower is None else {"do_lower_case": lower})
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(said))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert Tokenizer.load(tmp_path).encode("the Cat") == theirs("the Cat", add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize(
    ("said", "named"),
    [
        ({"added_tokens_decoder": {"300": {"content": "<a>", **PLAIN}}}, "<a>"),
        ({"added_tokens_decoder": {"x": {"content": "<a>"}}}, "added token"),
        ({"no_such_key": 1}, "no_such_key"),
        ({"auto_map": {"AutoTokenizer": ["x.Y", None]}}, "auto_map"),
        ({"strip_accents": "yes"}, "strip_accents"),
    ],
)
def test_a_tokenizer_that_would_be_another_is_refused(said, named, tmp_path):
    folder = byte_level(tmp_path, **said)
    with pytest.raises(ValueError, match=named):
        Tokenizer.load(folder)
    assert Tokenizer.load(folder, ignore=list(said)).encode("a")


@pytest.mark.parametrize("stop", ["<|end|>", ["never", "<|end|>"], "<|end|>x", "b<|end|>", "<|end|>q"])
def test_a_stop_string_may_hold_special_tokens(stop):
    core = Core(models.BPE(vocab={c: i for i, c in enumerate("abxyz")}, merges=[]))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    core.add_special_tokens([AddedToken(t, normalized=False) for t in ("<s>", "</s>", "<|end|>")])
    order = [core.token_to_id(t) for t in ("<s>", "a", "b", "<|end|>", "x", "y", "</s>")]
    model = af.build("llama", "tiny", dim=8, heads=2, kv_heads=2, hidden=8, vocab=8, depth=1, tied=False)
    with torch.no_grad():  # one token follows another, whatever came before
        for name, p in model.named_parameters():
            p.fill_(1.0) if "norm" in name else p.zero_()
        model.embed.tokens.weight.copy_(torch.eye(8))
        for before, after in itertools.pairwise(order):
            model.head.proj.weight[after, before] = 1.0
    model.tokenizer = Tokenizer(core, {"bos_token": "<s>", "eos_token": "</s>"})
    shown = {"b<|end|>": "a", "<|end|>q": "abxy"}.get(stop if isinstance(stop, str) else "", "ab")
    assert model.generate("<s>", max_new_tokens=10, stop=stop) == shown
    assert "".join(stream(model, "<s>", max_new_tokens=10, stop=stop)) == shown


def parts(tmp_path: Path, split: int = 2, **numbers: Any) -> Path:
    """A GGUF model in several files."""
    gguf = pytest.importorskip("gguf")
    said = {"context_length": 32, "embedding_length": 16, "block_count": 1, "feed_forward_length": 24, "vocab_size": 32}
    said |= {"attention.head_count": 2, "attention.head_count_kv": 2} | numbers
    shapes = {"token_embd": (32, 16), "output_norm": (16,), "output": (32, 16), "blk.0.attn_norm": (16,)}
    shapes |= {f"blk.0.attn_{n}": (16, 16) for n in ("q", "k", "v", "output")} | {"blk.0.ffn_norm": (16,)}
    shapes |= {"blk.0.ffn_gate": (24, 16), "blk.0.ffn_up": (24, 16), "blk.0.ffn_down": (16, 24)}
    for part in range(split):
        path = tmp_path / f"m-{part + 1:05d}-of-{split:05d}.gguf"
        out = gguf.GGUFWriter(path, "llama")
        out.add_uint16("split.no", part)
        out.add_uint16("split.count", split)
        if part == 0:
            for key, value in said.items():
                (out.add_array if isinstance(value, list) else out.add_uint32)(f"llama.{key}", value)
            out.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
        for name in list(shapes)[part::split]:
            out.add_tensor(f"{name}.weight", np.ones(shapes[name], np.float32))
        out.write_header_to_file(), out.write_kv_data_to_file(), out.write_tensors_to_file(), out.close()
    return tmp_path


@pytest.mark.parametrize("split", [1, 2, 3])
def test_a_gguf_in_parts_is_read_whole_whichever_is_named(split, tmp_path):
    folder = parts(tmp_path, split)
    for part in range(split):
        assert len(open_gguf(folder / f"m-{part + 1:05d}-of-{split:05d}.gguf").names()) == 12
    assert af.load(folder / f"m-00001-of-{split:05d}.gguf").ledger.count("used") == 12
    if split > 1:
        (folder / f"m-{split:05d}-of-{split:05d}.gguf").unlink()
        with pytest.raises(FileNotFoundError, match=rf"part 1 of {split}"):
            af.load(folder / f"m-00001-of-{split:05d}.gguf")


@pytest.mark.parametrize("key", ["attention.head_count", "attention.head_count_kv", "feed_forward_length"])
def test_one_number_a_layer_is_one_number_where_all_are_equal(key, tmp_path):
    number = 24 if key == "feed_forward_length" else 2
    (tmp_path / "same").mkdir(), (tmp_path / "other").mkdir()
    assert af.load(parts(tmp_path / "same", 1, **{key: [number, number]}) / "m-00001-of-00001.gguf")
    with pytest.raises(ValueError, match=rf"llama\.{key}"):
        af.load(parts(tmp_path / "other", 1, **{key: [number, 1]}) / "m-00001-of-00001.gguf")


@pytest.mark.parametrize("files", [1, 2])
def test_pickles_are_read_in_one_file_or_several_if_asked(files, tmp_path):
    model = af.build("llama", "tiny", seed=0)
    model.save(tmp_path)
    from anyformer.hub.formats.safetensors import open_weights

    stored = open_weights(tmp_path)
    state = {n: stored.get(n).clone() for n in stored.names()}
    (tmp_path / "model.safetensors").unlink()
    if files == 1:
        torch.save(state, tmp_path / "pytorch_model.bin")
    else:
        place = {n: f"pytorch_model-0000{i % 2 + 1}-of-00002.bin" for i, n in enumerate(state)}
        for file in set(place.values()):
            torch.save({n: t for n, t in state.items() if place[n] == file}, tmp_path / file)
        (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": place}))
    with pytest.raises(ValueError, match="allow_pickle"):
        af.load(tmp_path)
    with pytest.warns(UserWarning, match="pickle"):
        again = af.load(tmp_path, allow_pickle=True)
    assert all(torch.equal(p, model.state_dict()[n]) for n, p in again.state_dict().items())

"""Sentence vectors: how the files say, for every model that reads text."""

import json
import warnings

import pytest
import torch

import anyformer as af
from anyformer.core import pages
from anyformer.generate import embed
from anyformer.hub.formats.guard import FileRefused
from anyformer.hub.pooling import PROMPTS, Pooling, meaning, read_pooling
from anyformer.hub.text.tokenizer import Tokenizer

torch.set_num_threads(1)
TEXTS = ["a cat", "the other cat sleeps", "x", "naïve 🙂", "the other cat sleeps"]
TEXT_ALONE = {"input_ids", "decoder_input_ids"}
TINY = {p.name: pages.empty(p.recipe(p.sizes["tiny"])) for p in af.pages()}
OTHERS = ("alphafold2", "esmfold", "musicgen", "musiclm")  # read residues, or a text of which they say codes
READERS = [
    name
    for name, model in TINY.items()
    if name not in OTHERS
    and model.takes == "input_ids"
    and TEXT_ALONE.issuperset(n for n, read in model.inputs().items() if read.required)
]
VOCAB = {
    "llava": {"text.vocab": 300, "token": 299},
    "omni": {"text.vocab": 300, **{f"{kind}_token": 297 + i for i, kind in enumerate(("image", "video", "sound"))}},
}  # by the name of the page; else vocab


def reader(name="bert", **changes):
    m = af.build(name, "tiny", seed=0, **VOCAB.get(name, {"vocab": 300}), **changes).eval()
    with torch.no_grad():
        for weight in m.parameters():
            if weight.ndim > 1:
                weight.normal_(std=0.3, generator=torch.Generator().manual_seed(weight.numel()))
    m.tokenizer = Tokenizer.bytes_level()
    return m


def files(mode="mean", normalize=False, tokens=None, flags=True):
    config = {f"pooling_mode_{m}": m.startswith(mode) for m in ("cls_token", "mean_tokens", "max_tokens", "lasttoken")}
    steps = ["Transformer", "Pooling", *(["Normalize"] if normalize else [])]
    modules = [
        {"idx": i, "name": str(i), "path": f"{i}_{s}" if i else "", "type": f"st.models.{s}"}
        for i, s in enumerate(steps)
    ]
    return {
        "modules.json": modules,
        "1_Pooling/config.json": {"embedding_dimension": 32, **(config if flags else {"pooling_mode": mode})},
        **({"sentence_bert_config.json": {"max_seq_length": tokens, "do_lower_case": False}} if tokens else {}),
    }


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("mode", ["mean", "max", "cls", "lasttoken"])
def test_a_vector_is_pooled_from_the_real_tokens_and_does_not_depend_on_the_others(name, mode):
    m = reader(name)
    m.origin = {"pooling": files(mode)}
    found = embed(m, TEXTS, batch=3)
    for text, vector in zip(TEXTS, found, strict=True):
        ids = torch.tensor([m.tokenizer.encode(text)])
        with torch.no_grad():
            hidden = (m.encode(ids) if isinstance(m, af.EncoderDecoder) else m(ids).hidden)[0]
        expected = {"mean": hidden.mean(0), "max": hidden.amax(0), "cls": hidden[0], "lasttoken": hidden[-1]}[mode]
        torch.testing.assert_close(vector, expected, rtol=1e-4, atol=1e-5)
    assert found.shape == (5, hidden.shape[-1]) and found.dtype == torch.float32
    torch.testing.assert_close(found, embed(m, TEXTS, batch=1), rtol=1e-4, atol=1e-5)


def test_normalisation_is_as_the_files_say_unless_asked():
    m = reader()
    assert not torch.allclose(embed(m, TEXTS).norm(dim=1), torch.ones(5))
    assert torch.allclose(embed(m, TEXTS, normalize=True).norm(dim=1), torch.ones(5))
    m.origin = {"pooling": files(normalize=True)}
    assert torch.allclose(embed(m, TEXTS).norm(dim=1), torch.ones(5))
    assert not torch.allclose(embed(m, TEXTS, normalize=False).norm(dim=1), torch.ones(5))


def test_a_text_that_is_cut_is_told():
    m = reader()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        embed(m, ["x" * 64])
    with pytest.warns(UserWarning, match=r"2 of 3 texts are longer than 64 tokens \(the longest has 90\)") as told:
        long = embed(m, ["x" * 90, "y", "x" * 65])
    assert told[0].filename == __file__
    assert torch.allclose(long[0], embed(m, ["x" * 64])[0], atol=1e-5)
    m.origin = {"pooling": files(tokens=10)}
    with pytest.warns(UserWarning, match="longer than 10 tokens"):
        assert torch.allclose(embed(m, ["abcdefghijKLM"]), embed(m, ["abcdefghij"]), atol=1e-5)


def test_the_tokens_that_close_a_text_stay_when_it_is_cut():
    from tokenizers import processors

    m = reader(context=6)
    m.tokenizer.core.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A <|endoftext|>", special_tokens=[("<|endoftext|>", m.tokenizer.bos_id)]
    )
    with pytest.warns(UserWarning, match="longer than 6"):
        cut = embed(m, ["abcdefgh"])
    assert torch.allclose(cut, embed(m, ["abcd"]), atol=1e-5)


def test_a_training_model_embeds_as_in_eval_mode():
    m = reader(dropout=0.5).train()
    assert torch.equal(embed(m, TEXTS), embed(m, TEXTS)) and m.training


def test_the_files_survive_load_and_save(tmp_path):
    m = reader(task="none")
    m.origin = {"pooling": files("cls", normalize=True, tokens=30)}
    m.save(tmp_path / "a")
    again = af.load(tmp_path / "a")
    assert again.origin["pooling"] == m.origin["pooling"]
    again.save(tmp_path / "b")
    assert read_pooling(tmp_path / "b") == m.origin["pooling"]
    assert torch.equal(embed(again, TEXTS[:2]), embed(m, TEXTS[:2]))
    hybrid = af.build(af.recipe("llama", "tiny", vocab=300).but({"blocks.1.mixer": af.parts.Mamba.of()}), seed=0)
    hybrid.tokenizer, hybrid.origin = m.tokenizer, {"pooling": files(normalize=True), "generation": {"eos_token_id": 7}}
    hybrid.save(tmp_path / "c")
    assert {k: af.load(tmp_path / "c").origin[k] for k in ("pooling", "generation")} == hybrid.origin


def test_what_the_files_mean():
    assert meaning({}) == Pooling("mean", False, None)
    for flags in (True, False):
        assert meaning(files("cls", True, 256, flags)) == Pooling("cls", True, 256)
    for spoilt, words in (
        (lambda f: f["modules.json"].append({"type": "st.models.Dense", "path": "2_Dense"}), "modules: .*Dense"),
        (lambda f: f["1_Pooling/config.json"].update(pooling_mode="weightedmean"), "pooling_mode.*weightedmean"),
        (
            lambda f: f["1_Pooling/config.json"].update(pooling_mode_max_tokens=True),
            "pooling_mode.*mean.*max|max.*mean",
        ),
        (lambda f: f["1_Pooling/config.json"].update(pooling_mode_mean_sqrt_len_tokens=True), "mean_sqrt_len"),
        (lambda f: f["sentence_bert_config.json"].update(max_seq_length=0), "max_seq_length"),
        (lambda f: f.update({PROMPTS: {"prompts": {"query": 3}}}), "prompts"),
        (lambda f: f.update({PROMPTS: {"prompts": {}, "default_prompt_name": "query"}}), "default_prompt_name"),
    ):
        given = files(tokens=8)
        spoilt(given)
        with pytest.raises(FileRefused, match=words):
            meaning(given)


def test_prompts_and_small_letters_of_the_files_count():
    m = reader()
    plain = {text: embed(m, [text]) for text in ("query: Fox", "Fox", "fox")}
    said = {PROMPTS: {"prompts": {"query": "query: ", "document": ""}, "default_prompt_name": "query"}}
    m.origin = {"pooling": files() | said}
    assert torch.equal(embed(m, ["Fox"]), plain["query: Fox"])
    assert torch.equal(embed(m, ["Fox"], prompt="document"), plain["Fox"])
    assert torch.equal(embed(m, ["Fox"], prompt=""), plain["Fox"])
    with pytest.raises(ValueError, match=r"no prompt 'quary'.*query"):
        embed(m, ["Fox"], prompt="quary")
    given = files()
    given["sentence_bert_config.json"] = {"do_lower_case": True}
    m.origin = {"pooling": given}
    assert torch.equal(embed(m, ["Fox"]), plain["fox"])


def test_the_longest_text_of_the_tokenizer_counts_where_no_other_file_says_one():
    m = reader()
    m.tokenizer.config["model_max_length"] = 10
    with pytest.warns(UserWarning, match="longer than 10 tokens"):
        embed(m, ["x" * 30])
    m.origin = {"pooling": files(tokens=20)}
    with pytest.warns(UserWarning, match="longer than 20 tokens"):
        embed(m, ["x" * 30])
    for none in (10**30, None, "x", True):
        m.tokenizer.config["model_max_length"] = none
        assert m.tokenizer.longest is None


@pytest.mark.parametrize("path", ["../1_Pooling", "/etc", "a/b", "", None, 3])
def test_pooling_is_read_inside_its_folder_only(tmp_path, path):
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text("{}")
    inner = tmp_path / "model"
    inner.mkdir()
    (inner / "modules.json").write_text(json.dumps([{"type": "st.models.Pooling", "path": path}]))
    with pytest.raises(FileRefused, match="path"):
        read_pooling(inner)
    (inner / "modules.json").write_text(json.dumps([{"type": "st.models.Pooling", "path": "1_Pooling"}]))
    (inner / "1_Pooling").symlink_to(tmp_path / "1_Pooling")
    with pytest.raises(FileRefused, match="path"):
        read_pooling(inner)


@pytest.mark.parametrize("text", ["{}", "[1]", '[{"type": 3}]', "[", '{"a": 1, "a": 2}'])
def test_other_files_are_refused(tmp_path, text):
    (tmp_path / "modules.json").write_text(text)
    with pytest.raises(FileRefused):
        read_pooling(tmp_path)

"""ESM-2: the share of masks, stored frequencies, contacts."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import anyformer as af
from anyformer.core.flow import Flow
from anyformer.parts import Rotary
from anyformer.parts.proteins import Frequencies, StoredRotary, contacts

torch.set_num_threads(1)
BEGIN, END, PAD, MASK = 0, 2, 1, 32


def made(**changes):
    return af.build("esm", "tiny", seed=0, **changes).eval()


@pytest.fixture
def published(tmp_path):
    """A folder as facebook publishes them: the frequencies in each layer, rounded to 16 bits."""
    made(depth=3).save(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    turns = tensors.pop("esm.rotary_embeddings.inv_freq").half().float()
    for i in range(3):
        tensors[f"esm.encoder.layer.{i}.attention.self.rotary_embeddings.inv_freq"] = turns.clone()
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    return tmp_path


def rows():
    """Two proteins with begin and end, the second one padded."""
    ids = torch.randint(4, 24, (2, 14), generator=torch.Generator().manual_seed(0))
    ids[:, 0], ids[0, -1], ids[1, 9] = BEGIN, END, END
    ids[1, 10:] = PAD
    return ids, (ids != PAD).long()


def test_contacts_and_logits_are_those_of_transformers_by_the_frequencies_of_the_file(published):
    transformers = pytest.importorskip("transformers")
    model, theirs = af.load(published).eval(), transformers.EsmForMaskedLM.from_pretrained(published).eval()
    theirs.set_attn_implementation("eager")
    ids, mask = rows()
    ids[0, 5] = MASK
    with torch.no_grad():
        expected = theirs(input_ids=ids, attention_mask=mask).logits
        touching = theirs.esm.predict_contacts(ids, mask)
    found = model(input_ids=ids, attention_mask=mask).logits
    for i, n in enumerate((14, 10)):
        torch.testing.assert_close(found[i, :n], expected[i, :n], rtol=1e-4, atol=1e-5)
        ours = contacts(model, ids, mask)[i, : n - 2, : n - 2]
        torch.testing.assert_close(ours, touching[i, : n - 2, : n - 2], rtol=1e-4, atol=1e-6)
    exact = made().embed.frequencies
    assert torch.equal(model.embed.frequencies, exact.half().float()) and not torch.equal(exact.half().float(), exact)
    used = {line.name for line in model.ledger.tensors if line.status == "used"}
    assert "esm.encoder.layer.0.attention.self.rotary_embeddings.inv_freq" in used


def test_plain_rotary_positions_in_the_same_pass_have_their_own_frequencies():
    x, flow = torch.randn(1, 5, 2, 8), Flow(torch.arange(5))
    flow.put(Frequencies(torch.tensor([1.0, 0.5, 0.25, 0.125])))
    stored, plain = StoredRotary(8)(x, flow), Rotary(8)(x, flow)
    assert torch.equal(plain, Rotary(8)(x, Flow(torch.arange(5)))) and not torch.allclose(stored, plain)


def test_a_new_model_turns_by_theta():
    ids, _ = rows()
    far = made(theta=1e6)
    assert torch.equal(made().embed.frequencies, 1.0 / 1e4 ** (torch.arange(0, 8, 2) / 8))
    assert not torch.allclose(made()(ids).logits, far(ids).logits)


def test_masked_tokens_are_zero_and_the_others_are_scaled_by_their_share():
    embed, kept = made().embed, made(dropped=False).embed
    ids = torch.tensor([[5, MASK, 6, 7], [MASK, MASK, MASK, MASK]])
    model = made()
    with af.Taps(model, "embed") as taps:
        model(ids)
    x, table = taps["embed"], embed.tokens.weight
    assert not x[0, 1].any() and not x[1].any() and x.isfinite().all()
    torch.testing.assert_close(x[0, [0, 2, 3]], table[[5, 6, 7]] * (0.88 / 0.75))
    assert kept.hidden is None


def test_the_share_is_that_of_each_packed_protein():
    model = made()
    first, second = torch.tensor([[5, MASK, 6, 7]]), torch.tensor([[8, 9, MASK]])
    packed = model(torch.cat((first, second), 1), document_ids=torch.tensor([[0, 0, 0, 0, 1, 1, 1]])).logits
    torch.testing.assert_close(packed[:, :4], model(first).logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(packed[:, 4:], model(second).logits, rtol=1e-4, atol=1e-5)


def test_wrong_use_is_refused(tmp_path):
    with pytest.raises(ValueError, match="mask token, 40, is outside the vocabulary of 33"):
        made(mask=40)
    with pytest.raises(ValueError, match=r"one ContactRegression .* this one has 0"):
        contacts(af.build("bert", "tiny"), torch.tensor([[1, 2, 3]]))
    made().save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"is_folding_model": True}))
    with pytest.raises(ValueError, match="is_folding_model"):
        af.load(tmp_path)


TOKENS = ["<cls>", "<pad>", "<eos>", "<unk>", *"LAGVSERTIDPKQNFYMHWCXBUZO.-", "<null_1>", "<mask>"]


def test_the_vocabulary_of_a_published_folder_is_its_tokenizer(published, tmp_path):
    transformers = pytest.importorskip("transformers")
    roles = {
        "cls_token": "<cls>",
        "eos_token": "<eos>",
        "mask_token": "<mask>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
    }
    (published / "vocab.txt").write_text("\n".join(TOKENS))
    (published / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "EsmTokenizer", **roles}))
    theirs, model = transformers.EsmTokenizer(str(published / "vocab.txt")), af.load(published)
    for text in ("MKTAYIAK", "MK TA<mask>Y", "MKxyzB", "-.", "", "M<pad>K"):
        assert model.tokenizer.encode(text) == theirs(text).input_ids, text
    assert model.tokenizer.decode(model.tokenizer.encode("MKT")).replace(" ", "") == "MKT"
    model.save(tmp_path / "saved")
    again = af.load(tmp_path / "saved").tokenizer
    assert again.encode("MK<mask>Z") == theirs("MK<mask>Z").input_ids and again.role_id("mask_token") == MASK
    for text, reason in (("<cls> A", "<eos>, <unk>"), ("<cls> <eos> <unk> A A", "A stands there twice")):
        (published / "vocab.txt").write_text(text.replace(" ", "\n"))
        with pytest.raises(ValueError, match=reason):
            af.load(published)

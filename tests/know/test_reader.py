"""A RAG model finds and reads the passages of an index; what does not fit it is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import anyformer as af
from anyformer.hub.text.tokenizer import Tokenizer
from anyformer.know import Encoder, index
from anyformer.know.reader import Passages, Reader, written
from anyformer.know.store import Store
from anyformer.models.rag import joined
from anyformer.train.tasks.registry import add_special_tokens

FACTS = {"cat": "animal", "rose": "flower", "oak": "tree", "trout": "fish", "hammer": "tool", "violin": "instrument"}


def tokenizer() -> Tokenizer:
    texts = [f"a {noun} is a kind of {kind}. what is a {noun}?" for noun, kind in FACTS.items()]
    return add_special_tokens(Tokenizer.train_bpe(texts * 3, 300), "retrieve")


def parts(seed: int = 0, dim: int = 16) -> tuple[Any, Any]:
    """An encoder and a generator with one tokenizer."""
    made = tokenizer()
    vocab = made.vocab_size
    torch.manual_seed(seed)
    bert = af.build("bert", "tiny", vocab=vocab, dim=dim, depth=1, heads=2, hidden=20, task="none", seed=seed)
    t5 = af.build("t5", "tiny", vocab=vocab, dim=16, depth=1, decoder_depth=1, heads=2, hidden=20, seed=seed)
    for model in (bert, t5):
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.data.normal_(0, 0.3)
    bert.tokenizer = t5.tokenizer = made
    bert.origin = {
        "pooling": {
            "modules.json": [
                {"type": "sentence_transformers.models.Transformer", "path": ""},
                {"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"},
            ],
            "1_Pooling/config.json": {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False},
        }
    }
    return bert, t5


def indexed(tmp_path: Path, bert: Any, name: str = "small", facts: dict[str, str] = FACTS) -> Path:
    folder = tmp_path / f"{name}-facts"
    folder.mkdir()
    for noun, kind in facts.items():
        (folder / f"{noun}.txt").write_text(f"a {noun} is a kind of {kind}.\n")
    index(folder, tmp_path / name, Encoder(bert, name))
    return tmp_path / name


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Any]:
    bert, t5 = parts()
    return indexed(tmp_path_factory.mktemp("ready"), bert), bert, t5


def test_finds_by_the_products_of_the_index_and_writes_them_before_the_question(ready: Any) -> None:
    place, bert, t5 = ready
    model = joined(bert, t5, passages=2, longest=60, prefix="read: ", between=" || ").eval()
    reader = Reader(model, Passages.of(place))
    question = "what is a rose?"
    numbers, scores = reader.find([reader.question(question)])
    store = Store(place)
    _, vectors = store.vectors(16)
    store.close()
    ids = torch.tensor([reader.question(question)])
    with torch.no_grad():
        products = vectors @ model.question(ids).hidden[0, 0].numpy()  # the first token's vector, as DPR's
    order = np.argsort(-products, kind="stable")[:2]
    assert numbers.tolist() == [order.tolist()]
    np.testing.assert_allclose(scores[0].numpy(), products[order], rtol=1e-5)
    made = reader.given([question], numbers)
    row = made["context_input_ids"][0, 0][made["context_attention_mask"][0, 0].bool()].tolist()
    text = reader.passages.rows[order[0]].text
    end = model.tokenizer.role_id("eos_token")
    assert row == [*model.tokenizer.core.encode(f"read: {text} || {question}", add_special_tokens=False).ids, end]
    np.testing.assert_allclose(made["doc_vectors"][0].numpy(), vectors[order])
    # the same encoder for both: the products are those of the index, up to the length of the question
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-4)


def test_what_is_asked_or_read_spells_no_special_token(tmp_path: Path) -> None:
    bert, t5 = parts()
    made = t5.tokenizer
    special = {i for i, token in made.core.get_added_tokens_decoder().items() if token.special}
    spelt = "".join(token.content for token in made.core.get_added_tokens_decoder().values() if token.special)
    reader = Reader(
        joined(bert, t5, passages=1, longest=200).eval(),
        Passages.of(indexed(tmp_path, bert, facts={"cat": f"animal {spelt}"})),
    )
    plain, text = reader.question("cat"), f"cat {spelt}"
    assert special & set(made.encode(text, special=False))  # as it is, it would be read so
    assert special & set(reader.question(text)) == special & set(plain)  # those around every question
    ids = reader.given([text], torch.tensor([[0]]))["context_input_ids"].flatten().tolist()
    assert special & set(ids) == {made.role_id("eos_token")} and ids.count(made.role_id("eos_token")) == 1


def test_answers_are_the_mean_over_the_passages_that_are_shown(ready: Any) -> None:
    place, bert, t5 = ready
    for task in ("token", "sequence"):
        reader = Reader(joined(bert, t5, passages=3, task=task).eval(), Passages.of(place))
        for beams in (1, 2):
            reply = reader.ask(["what is an oak?"], max_new_tokens=4, num_beams=beams)[0]
            assert len(reply.passages) == 3 and reply.score < 0
            after = [passage[2] for passage in reply.passages]
            for shares in ([passage[1] for passage in reply.passages], after):
                assert sum(shares) == pytest.approx(1, abs=1e-4)
            assert after == sorted(after, reverse=True)
        assert all(row.place() in written(reply) for row, _, _ in reply.passages)
    several = [reply.text for reply in reader.ask(["what is an oak?", "what is a cat?"], max_new_tokens=4, batch=1)]
    assert [r.text for r in reader.ask(["what is an oak?", "what is a cat?"], max_new_tokens=4)] == several


def test_own_encoder_of_passages_makes_its_vectors(ready: Any) -> None:
    place, bert, t5 = ready
    model = joined(bert, t5, passages=2, documents=True).eval()
    reader = Reader(model, Passages.of(place))
    text = reader.passages.rows[3].text
    ids = torch.tensor([reader.question(text)])
    with torch.no_grad():
        expected = model.document(ids).hidden[0, 0]
        torch.testing.assert_close(reader.vectors[3], expected, atol=1e-5, rtol=1e-5)
        model.document.embed.tokens.weight.add_(torch.randn_like(model.document.embed.tokens.weight))
        reader.refresh()
        assert not torch.allclose(reader.vectors[3], expected, atol=1e-3)
        torch.testing.assert_close(reader.vectors[3], model.document(ids).hidden[0, 0], atol=1e-5, rtol=1e-5)
    numbers, scores = reader.find([reader.question("what is a cat?")])
    made = reader.given(["what is a cat?"], numbers)
    with torch.no_grad():
        out = model(
            input_ids=torch.tensor([reader.question("what is a cat?")]),
            decoder_input_ids=torch.zeros(1, 1).long(),
            **made,
        )
    torch.testing.assert_close(out.beside["scores"], scores, atol=1e-4, rtol=1e-4)


def test_published_folders_have_a_tokenizer_for_each_side(ready: Any, tmp_path: Path) -> None:
    place, bert, t5 = ready
    model = joined(bert, t5, passages=2)
    model.save(tmp_path / "m")
    (tmp_path / "m" / "tokenizer.json").unlink()
    for name in ("question_encoder_tokenizer", "generator_tokenizer"):
        model.tokenizer.save(tmp_path / "m" / name)
    again = af.load(tmp_path / "m")
    assert Reader(again, Passages.of(place)).ask(["what is an oak?"], max_new_tokens=2)
    again.ledger = None
    with pytest.raises(ValueError, match=r"no tokenizer"):
        Reader(again, Passages.of(place))


def test_empty_index_is_said(tmp_path: Path) -> None:
    Store(tmp_path / "empty", create=True).close()
    with pytest.raises(ValueError, match=r"holds no passage"):
        Passages.of(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match=r"no index"):
        Passages.of(tmp_path / "none")


def test_k_beyond_the_index_is_said(ready: Any) -> None:
    place, bert, t5 = ready
    with pytest.raises(ValueError, match=r"k is 7, and .* holds 6 passages"):
        Reader(joined(bert, t5), Passages.of(place), 7)
    with pytest.raises(ValueError, match=r"k is 0"):
        Reader(joined(bert, t5), Passages.of(place), 0)


def test_index_of_another_encoder_is_said(ready: Any, tmp_path: Path) -> None:
    place, bert, t5 = ready
    wide, _ = parts(dim=24)
    other = indexed(tmp_path, wide, "wide")
    with pytest.raises(ValueError, match=r"wide, 24 wide, and the model's questions are 16 wide"):
        Reader(joined(bert, t5, passages=2), Passages.of(other))
    same, _ = parts(seed=4)
    third = indexed(tmp_path, same, "third")
    joined(bert, t5, passages=2).save(tmp_path / "start")
    model = af.load(tmp_path / "start")
    model.origin["config"]["dataset"] = "small"  # as training leaves it, and files keep it
    Reader(model, Passages.of(place))
    with pytest.raises(ValueError, match=r"made by third, and the model learned to find vectors of small"):
        Reader(model, Passages.of(third))
    model.save(tmp_path / "m")
    with pytest.raises(ValueError, match=r"made by third"):
        Reader(af.load(tmp_path / "m"), Passages.of(third))


def test_long_passages_and_questions_are_said_and_never_cut(ready: Any) -> None:
    place, bert, t5 = ready
    reader = Reader(joined(bert, t5, passages=2, longest=12), Passages.of(place))
    with pytest.raises(
        ValueError, match=r"passage .*txt:1 has \d+ tokens with its question, and the generator reads 12"
    ):
        reader.ask(["what is a rose, and what is an oak?"])
    with pytest.raises(ValueError, match=r"the question has .* reads 64: nothing is cut"):
        reader.ask(["what is a rose? " * 40])
    with pytest.raises(ValueError, match=r"the question is empty"):
        reader.ask(["  "])


def test_joined_refuses_other_pages() -> None:
    with pytest.raises(ValueError, match=r"joins a BERT with a BART or a T5"):
        joined(af.build("gpt", "tiny"), af.build("t5", "tiny"))

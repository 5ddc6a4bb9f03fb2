"""RAG beside transformers' classes: losses, mixtures, greedy and beam search of both kinds; the paper's formulas."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

import anyformer as af
from anyformer.contract import retrieved
from anyformer.generate.retrieving import respond, scored

transformers = pytest.importorskip("transformers")
K, END, PAD = 3, 2, 1


def made(folder: Path, kind: str, generator: str = "bart") -> tuple[Any, Any]:
    """A small model of theirs and ours, read from its files."""
    torch.manual_seed(5)
    question = transformers.DPRConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=20,
        max_position_embeddings=40, projection_dim=12,
    )  # fmt: skip
    if generator == "bart":
        inner: Any = transformers.BartConfig(
            vocab_size=23, d_model=16, encoder_layers=1, decoder_layers=2, encoder_attention_heads=2,
            decoder_attention_heads=2, encoder_ffn_dim=20, decoder_ffn_dim=20, max_position_embeddings=40,
            decoder_start_token_id=END, forced_eos_token_id=None, eos_token_id=END, pad_token_id=PAD, bos_token_id=0,
        )  # fmt: skip
    else:
        inner = transformers.T5Config(
            vocab_size=23, d_model=16, num_layers=1, num_heads=2, d_kv=6, d_ff=20, decoder_start_token_id=0,
            eos_token_id=END, pad_token_id=PAD,
        )  # fmt: skip
    begin = inner.decoder_start_token_id
    config = transformers.RagConfig.from_question_encoder_generator_configs(
        question, inner, n_docs=K, retrieval_vector_size=12, eos_token_id=END, pad_token_id=PAD,
        decoder_start_token_id=begin, do_deduplication=True,
    )  # fmt: skip
    name = {"token": "RagTokenForGeneration", "sequence": "RagSequenceForGeneration"}[kind]
    theirs = getattr(transformers, name)(config).eval()
    noise = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, weight in theirs.named_parameters():
            if name.endswith("bias") or "question" in name:
                weight.normal_(0, 0.3 if "question" in name else 0.05, generator=noise)
            elif "norm" in name.lower():
                weight.normal_(1, 0.1, generator=noise)
            else:  # so that an answer depends on its passages
                weight.normal_(0, 1.5 if "encoder_attn" in name or "EncDec" in name else 0.4, generator=noise)
        if generator == "bart":
            theirs.rag.generator.final_logits_bias[0, PAD] = -50.0  # a generated pad would count as an end
    theirs.tie_weights()
    theirs.save_pretrained(folder)
    for file in folder.glob("generation_config.json"):
        file.unlink()
    return theirs, af.load(folder, dtype=torch.float32)


def asked(rows: int, seed: int = 0, shortest: int = 4) -> dict[str, torch.Tensor]:
    noise = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 50, (rows, 6), generator=noise)
    context = torch.randint(3, 23, (rows, K, 9), generator=noise)
    mask = torch.arange(9) < torch.randint(shortest, 10, (rows, K, 1), generator=noise)
    return {
        "input_ids": ids, "attention_mask": torch.ones_like(ids),
        "context_input_ids": context.masked_fill(~mask, PAD), "context_attention_mask": mask.long(),
        "doc_vectors": torch.randn(rows, K, 12, generator=noise),
    }  # fmt: skip


def found(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {n: v for n, v in inputs.items() if n.startswith(("context_", "doc_"))}


@pytest.mark.parametrize("generator", ["bart", "t5"])
@pytest.mark.parametrize("beams", [1, 3])
def test_token_writes_what_theirs_writes(tmp_path: Path, generator: str, beams: int) -> None:
    theirs, ours = made(tmp_path, "token", generator)
    inputs = asked(4)
    with torch.no_grad():
        scores = ours(**inputs, decoder_input_ids=torch.zeros(4, 1, dtype=torch.long)).beside["scores"]
        answers = theirs.generate(
            context_input_ids=inputs["context_input_ids"].flatten(0, 1),
            context_attention_mask=inputs["context_attention_mask"].flatten(0, 1),
            doc_scores=scores, n_docs=K, num_beams=beams, max_length=7, do_sample=False, use_cache=False,
        )  # fmt: skip
    wanted = [[t for t in row[1:].tolist() if t != PAD] for row in answers]
    wanted = [row[: row.index(END)] if END in row else row for row in wanted]
    got = respond(ours, inputs["input_ids"].tolist(), found(inputs), max_new_tokens=6, num_beams=beams)
    assert [r.tokens for r in got] == wanted
    assert len({tuple(row) for row in wanted}) > 1


@pytest.mark.parametrize("generator", ["bart", "t5"])
@pytest.mark.parametrize("beams", [1, 3])
def test_sequence_writes_what_theirs_writes(tmp_path: Path, generator: str, beams: int) -> None:
    """Their search: beams of each passage alone, all answers scored with all passages. Theirs reads padding as words
    there (it calls its generator without a mask), so the passages have one length."""
    theirs, ours = made(tmp_path, "sequence", generator)
    theirs.config.generator.__dict__.setdefault("bos_token_id", None)
    inputs = asked(4, 1, shortest=9)
    with torch.no_grad():
        scores = ours(**inputs, decoder_input_ids=torch.zeros(4, 1, dtype=torch.long)).beside["scores"]
        answers = theirs.generate(
            context_input_ids=inputs["context_input_ids"].flatten(0, 1),
            context_attention_mask=inputs["context_attention_mask"].flatten(0, 1),
            doc_scores=scores, n_docs=K, num_beams=beams, max_new_tokens=6, do_sample=False,
            eos_token_id=END, pad_token_id=PAD,
        )  # fmt: skip
    wanted = [[t for t in row[1:].tolist() if t != PAD] for row in answers]
    wanted = [row[: row.index(END)] if END in row else row for row in wanted]
    got = respond(ours, inputs["input_ids"].tolist(), found(inputs), max_new_tokens=6, num_beams=beams, thorough=True)
    assert [r.tokens for r in got] == wanted
    assert len({tuple(row) for row in wanted}) > 1


@pytest.mark.parametrize("kind", ["token", "sequence"])
def test_loss_and_gradients_are_theirs(tmp_path: Path, kind: str) -> None:
    theirs, ours = made(tmp_path, kind)
    inputs, target = asked(3), torch.tensor([[END, 5, 6, 7, END], [END, 8, 9, END, PAD], [END, 4, 4, 4, END]])
    expected = retrieved.call(theirs, inputs, labels=target)["loss"].sum()
    expected.backward()
    labels = target[:, 1:].masked_fill(target[:, 1:] == PAD, -100)
    out = ours(**inputs, decoder_input_ids=target[:, :-1])
    loss = torch.nn.functional.cross_entropy(out.logits.flatten(0, 1), labels.flatten(), reduction="sum")
    loss.backward()
    torch.testing.assert_close(loss, expected)
    mine = ours.question.blocks[0].mixer.q.weight.grad
    wanted = theirs.rag.question_encoder.question_encoder.bert_model.encoder.layer[0].attention.self.query.weight.grad
    torch.testing.assert_close(mine, wanted, atol=1e-4, rtol=1e-4)
    assert float(mine.abs().max()) > 1e-4


def test_probabilities_are_the_formulas_of_the_paper() -> None:
    """All answers of two words: sums over passages by hand, by products of the generator alone."""
    small = {"passages": 2, "bart.vocab": 5, "bart.context": 16}
    for task in ("token", "sequence"):
        model = af.build("rag", "tiny", task=task, seed=3, **small).eval()
        for weight in model.parameters():
            weight.data.normal_(0, 0.3)
        inputs = model.example(1, {"": (4,), "decoder_": (2,)}, torch.Generator().manual_seed(1))
        inputs = {n: v for n, v in inputs.items() if n not in ("token_type_ids", "decoder_input_ids")}
        texts = [list(pair) for pair in itertools.product(range(5), repeat=2)]
        many = {n: v.expand(25, *v.shape[1:]) for n, v in inputs.items()}
        got = scored(model, many["input_ids"].tolist(), found(many), texts)
        with torch.no_grad():
            scores = model.asked(inputs["input_ids"]) @ inputs["doc_vectors"][0].T
            prior = scores.softmax(-1)[0].double()
            by_hand = []
            for first, second in texts:
                target = torch.tensor([[model.begin_id, first]]).expand(2, 2)
                out = model.generator(
                    inputs["context_input_ids"][0], inputs["context_attention_mask"][0], decoder_input_ids=target
                )
                p = out.logits.double().softmax(-1)
                one, two = p[:, 0, first], p[:, 1, second]
                token, sequence = (prior @ one) * (prior @ two), prior @ (one * two)
                by_hand.append(float(token if task == "token" else sequence))
        torch.testing.assert_close(torch.tensor([r.score for r in got]).exp(), torch.tensor(by_hand))
        assert abs(sum(by_hand) - 1) < 1e-6


@pytest.mark.parametrize("task", ["token", "sequence"])
def test_order_of_passages_and_padding_change_nothing(task: str) -> None:
    model = af.build("rag", "tiny", task=task, seed=3).eval()
    inputs = model.example(2, {}, torch.Generator().manual_seed(1))
    expected = model(**inputs).logits
    order = torch.tensor([2, 0, 1])
    turned = {n: v[:, order] if n in found(inputs) else v for n, v in inputs.items()}
    torch.testing.assert_close(model(**turned).logits, expected)
    wider = dict(inputs)
    for name in ("context_input_ids", "context_attention_mask"):
        wider[name] = torch.nn.functional.pad(inputs[name], (4, 3, 0, 2))  # words on both sides, two empty passages
    wider["doc_vectors"] = torch.nn.functional.pad(inputs["doc_vectors"], (0, 0, 0, 2), value=50.0)
    mask = wider["context_attention_mask"]
    wider["context_input_ids"] = wider["context_input_ids"].masked_fill(mask == 0, 7)
    again = model(**wider)
    torch.testing.assert_close(again.logits, expected, atol=2e-5, rtol=1e-4)
    assert float(again.beside["posterior"][..., 3:].exp().max()) == 0.0


def test_one_passage_makes_both_kinds_the_generator() -> None:
    token = af.build("rag", "tiny", passages=1, seed=3).eval()
    sequence = af.build("rag", "tiny", passages=1, task="sequence", seed=4).eval()
    sequence.load_state_dict(token.state_dict())
    inputs = token.example(2, {}, torch.Generator().manual_seed(1))
    a, b = token(**inputs).logits, sequence(**inputs).logits
    torch.testing.assert_close(a, b)
    alone = token.generator(
        inputs["context_input_ids"][:, 0], inputs["context_attention_mask"][:, 0],
        decoder_input_ids=inputs["decoder_input_ids"],
    )  # fmt: skip
    torch.testing.assert_close(a, alone.logits.log_softmax(-1))


@pytest.mark.parametrize("task", ["token", "sequence"])
def test_the_compiler_sees_one_graph(task: str) -> None:
    model = af.build("rag", "tiny", task=task, seed=3).eval()
    inputs = model.example(2, {}, torch.Generator().manual_seed(1))
    torch._dynamo.reset()
    with torch.no_grad():
        expected = model(**inputs).logits
        torch.testing.assert_close(torch.compile(model, backend="eager", fullgraph=True)(**inputs).logits, expected)


@pytest.mark.parametrize("task", ["token", "sequence"])
def test_gradient_reaches_both_encoders(task: str) -> None:
    model = af.build("rag", "tiny", task=task, documents=True, seed=3)
    inputs = model.example(2, {}, torch.Generator().manual_seed(1))
    model(**inputs).logits[..., 5].sum().backward()
    for side in (model.question, model.document):
        assert float(side.blocks[0].mixer.q.weight.grad.abs().max()) > 0


def test_own_files_keep_the_encoder_of_passages(tmp_path: Path) -> None:
    model = af.build("rag", "tiny", documents=True, seed=3).eval()
    model.save(tmp_path / "m")
    again = af.load(tmp_path / "m")
    inputs = model.example(2, {}, torch.Generator().manual_seed(1))
    assert torch.equal(model(**inputs).logits, again(**inputs).logits)


def test_sequence_files_are_not_read_as_token(tmp_path: Path) -> None:
    af.build("rag", "tiny", task="sequence", seed=3).save(tmp_path / "m")
    assert af.load(tmp_path / "m").recipe.part.__name__ == "RagSequence"
    with pytest.raises(ValueError, match=r"sequence.*token"):
        af.load(tmp_path / "m", task="token")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"context_input_ids": None}, "context_input_ids"),
        ({"doc_vectors": torch.zeros(2, 3, 9)}, r"doc_vectors must be \(2, 3, 32\)"),
        ({"context_input_ids": torch.zeros(3, 3, 7, dtype=torch.long)}, r"\(2, passages, words\)"),
        ({"context_attention_mask": torch.ones(2, 3, 5)}, "context_attention_mask must be"),
    ],
)
def test_wrong_passages_are_named(change: dict[str, Any], message: str) -> None:
    model = af.build("rag", "tiny", seed=3).eval()
    inputs = model.example(2, {}, torch.Generator().manual_seed(1)) | change
    with pytest.raises(ValueError, match=message):
        model(**inputs)


def test_respond_refuses_what_it_cannot_do() -> None:
    model = af.build("rag", "tiny", seed=3).eval()
    inputs = model.example(2, {}, torch.Generator().manual_seed(1))
    with pytest.raises(ValueError, match="thorough"):
        respond(model, [[3], [4]], found(inputs), thorough=True)
    with pytest.raises(ValueError, match="1 questions"):
        respond(model, [[3]], found(inputs))
    with pytest.raises(ValueError, match="reads no passages"):
        respond(af.build("bart", "tiny"), [[3]], {})  # type: ignore[arg-type]

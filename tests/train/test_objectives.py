"""Objectives against their formulas in NumPy, the counting of tokens, the schedule, which parameters decay."""

import json
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

import anyformer as af
from anyformer.skeletons.base import Output
from anyformer.skeletons.encoder import Encoder
from anyformer.train import Settings, fit, objectives, optim, step_loss


def reference(logits, labels):
    """The sum of -log softmax over what counts, and how much that is, in float64."""
    x, y = logits.detach().double().numpy().reshape(-1, logits.shape[-1]), labels.numpy().reshape(-1)
    logs = x - np.log(np.exp(x - x.max(1, keepdims=True)).sum(1, keepdims=True)) - x.max(1, keepdims=True)
    kept = y != -100
    return -logs[kept, y[kept]].sum(), kept.sum()


def some(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 3


@pytest.mark.parametrize("objective", [objectives.causal_lm, objectives.masked_lm, objectives.classification])
def test_token_losses_are_their_formula(objective):
    logits, labels = some(3, 5, 11), torch.randint(0, 11, (3, 5))
    labels[0, 2:], labels[2] = -100, -100
    total, count = reference(logits, labels)
    loss = objective(Output(logits, logits), labels, objectives.counted(labels))
    assert float(loss) == pytest.approx(total / count, rel=1e-6)


def test_classification_of_whole_inputs():
    logits, labels = some(4, 3), torch.tensor([0, 2, -100, 1])
    total, count = reference(logits, labels)
    assert float(objectives.classification(Output(logits, logits), labels, 3)) == pytest.approx(total / count, rel=1e-6)


def test_masked_lm_reads_its_own_head():
    labels = torch.randint(0, 11, (2, 5))
    output = Output(some(1), logits=some(2, 2), heads={"nsp": some(2, 2), "mlm": some(2, 5, 11)})
    total, count = reference(output.heads["mlm"], labels)
    assert float(objectives.masked_lm(output, labels, count)) == pytest.approx(total / count, rel=1e-6)


def test_nothing_counted_is_zero_with_zero_gradients():
    logits = some(2, 3, 4).requires_grad_()
    loss = objectives.causal_lm(Output(logits, logits), torch.full((2, 3), -100), 1)
    loss.backward()
    assert loss.item() == 0 and not logits.grad.any()


def test_label_out_of_range_and_wrong_shape_are_named():
    with pytest.raises(ValueError, match=r"label 11 is outside .* 0 to 10"):
        objectives.causal_lm(Output(some(1), some(1, 2, 11)), torch.tensor([[3, 11]]), 2)
    with pytest.raises(ValueError, match=r"labels of shape \(1, 3\) .* logits \(1, 2, 11\)"):
        objectives.causal_lm(Output(some(1), some(1, 2, 11)), torch.tensor([[3, 1, 1]]), 2)


def test_next_tokens_leave_padding_out_on_both_sides():
    ids = torch.tensor([[5, 6, 7, 0, 0], [0, 0, 5, 6, 7]])
    assert objectives.next_tokens(ids, (ids > 0).long()).tolist() == [
        [6, 7, -100, -100, -100],
        [-100, -100, 6, 7, -100],
    ]
    assert objectives.next_tokens(ids)[0].tolist() == [6, 7, 0, 0, -100]


def test_next_tokens_do_not_cross_documents():
    ids, documents = torch.tensor([[5, 6, 7, 8, 9, 0]]), torch.tensor([[0, 0, 1, 2, 2, -1]])
    assert objectives.next_tokens(ids, document_ids=documents).tolist() == [[6, -100, -100, 9, -100, -100]]


def test_a_decoder_reads_the_labels_one_place_later():
    labels = torch.tensor([[5, 6, 7], [5, -100, -100]])
    assert objectives.shift_right(labels, 2, 9).tolist() == [[2, 5, 6], [2, 5, 9]]


@pytest.mark.parametrize("objective", [objectives.causal_lm, objectives.seq2seq, objectives.classification])
def test_label_smoothing_is_that_of_torch_and_of_transformers(objective):
    from transformers.trainer_pt_utils import LabelSmoother

    logits, labels = some(3, 5, 11), torch.randint(0, 11, (3, 5))
    labels[0, 2:], labels[2] = -100, -100
    loss = partial(objective, label_smoothing=0.1)(Output(logits, logits), labels, objectives.counted(labels))
    theirs = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), label_smoothing=0.1)
    torch.testing.assert_close(loss, theirs)
    torch.testing.assert_close(loss, LabelSmoother(0.1)({"logits": logits}, labels.clone()))


def test_double_precision_is_kept():
    logits = some(3, 4).double().requires_grad_()
    labels = torch.tensor([1, -100, 2])
    assert torch.autograd.gradcheck(lambda x: objectives.classification(Output(x, x), labels, 2), logits)


# --------------------------------------------------------------------- whole models against the oracle's own loss


def ours_and_theirs(tmp_path, theirs):
    """The oracle's model and ours, read from its files, with weights that hide nothing."""
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    theirs.eval().save_pretrained(tmp_path)
    return af.load(tmp_path).eval()


def padded(*shape, vocab=60, seed=1):
    """Ids and a mask with padding on the right, one row of one token."""
    ids = torch.randint(3, vocab, shape, generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(ids)
    mask[0, shape[1] // 2 :], mask[1, 1:] = 0, 0
    return ids, mask


def test_bert_pretraining_is_the_oracles_loss(tmp_path):
    from transformers import BertConfig, BertForPreTraining

    config = BertConfig(vocab_size=60, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=40)
    theirs = BertForPreTraining(config)
    model = ours_and_theirs(tmp_path, theirs)
    ids, mask = padded(4, 10)
    types = (torch.arange(10) > 4).long().expand(4, 10)
    hidden = (torch.rand(4, 10, generator=torch.Generator().manual_seed(2)) < 0.3) & mask.bool()
    tokens, pairs = ids.masked_fill(~hidden, -100), torch.tensor([0, 1, -100, 1])
    labels = torch.cat((pairs[:, None], tokens), 1)
    objective = objectives.MaskedAndNextSentence()
    loss = objective(model(ids, mask, types), labels, objective.counted(labels))
    expected = theirs(ids, mask, types, labels=tokens, next_sentence_label=pairs).loss
    torch.testing.assert_close(loss, expected)


def test_sequence_to_sequence_is_the_oracles_loss(tmp_path):
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(vocab_size=60, d_model=32, d_kv=8, d_ff=40, num_layers=2, num_heads=4, decoder_start_token_id=0)
    theirs = T5ForConditionalGeneration(config)
    model = ours_and_theirs(tmp_path, theirs)
    (ids, mask), (target, kept) = padded(3, 9), padded(3, 7, seed=2)
    labels = target.masked_fill(kept == 0, -100)
    output = model(ids, mask, objectives.shift_right(labels, model.begin_id))
    loss = objectives.seq2seq(output, labels, objectives.counted(labels))
    torch.testing.assert_close(loss, theirs(ids, mask, labels=labels).loss)


# --------------------------------------------------------------------------------------------- sentence vectors


def sentences(seed=0, pairs=4):
    """Hidden states of so many pairs of texts, and which places are real; padding is huge."""
    hidden = some(2 * pairs, 5, 6, seed=seed)
    keep = torch.arange(5) < torch.tensor([5, 2, 1, 4, 3, 5, 2, 2][: 2 * pairs])[:, None]
    return hidden.masked_fill(~keep[..., None], 1e4), keep


def info_nce(hidden, keep, labels, temperature, symmetric):
    """Pair by pair, in NumPy."""
    vectors = np.stack([h[k].mean(0) for h, k in zip(hidden.double().numpy(), keep.numpy(), strict=True)])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    losses = []
    for x, others in ((vectors[::2], vectors[1::2]), (vectors[1::2], vectors[::2]))[: 1 + symmetric]:
        for i, number in enumerate(labels):
            if number == -100:
                continue
            wrong = [j for j, other in enumerate(labels) if other != number or other == -100]
            scores = np.array([x[i] @ others[j] for j in [i, *wrong]]) / temperature
            losses.append(np.log(np.exp(scores).sum()) - scores[0])
    return np.mean(losses)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("numbers", [[0, 1, 2, 3], [0, 1, 1, 3], [0, -100, 2, -100]])
def test_contrastive_is_its_formula(numbers, symmetric):
    hidden, keep = sentences()
    objective = objectives.Contrastive(0.1, symmetric)
    labels = torch.tensor(numbers).repeat_interleave(2)
    loss = objective(Output(hidden, keep=keep), labels, objective.counted(labels))
    assert float(loss) == pytest.approx(info_nce(hidden, keep, numbers, 0.1, symmetric), rel=1e-5)


def test_contrastive_pools_as_embed_does():
    model = af.build("bert", "tiny", seed=0, task="none").eval()
    ids, mask = padded(4, 6)
    output = model(ids, mask)
    for mode in ("mean", "max", "cls", "lasttoken"):
        alone = [model(row[keep.bool()][None]).hidden[0] for row, keep in zip(ids, mask, strict=True)]
        pick = {"mean": lambda h: h.mean(0), "max": lambda h: h.amax(0), "cls": lambda h: h[0]}
        expected = torch.stack([pick.get(mode, lambda h: h[-1])(h) for h in alone])
        torch.testing.assert_close(objectives.pooled(output.hidden, output.keep, mode), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("options", [{"temperature": 0}, {"pooling": "sum"}])
def test_contrastive_refuses(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        objectives.Contrastive(**options)


def test_contrastive_needs_pairs():
    hidden, keep = sentences()
    with pytest.raises(ValueError, match="pair's number at both"):
        objectives.Contrastive()(Output(hidden, keep=keep), torch.arange(8), 4)


def one_of_two(rank, folder):
    """A process with a part of the rows: 3 pairs, or 1."""
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    hidden, keep = sentences()
    rows = slice(0, 6) if rank == 0 else slice(6, 8)
    mine = hidden[rows].clone().requires_grad_()
    labels = torch.arange(4).repeat_interleave(2)[rows]
    loss = objectives.Contrastive(0.1, True)(Output(mine, keep=keep[rows]), labels, 4)
    loss.backward()
    torch.save((loss.detach(), mine.grad), f"{folder}/{rank}.pt")
    dist.barrier()  # neither ends while the other still speaks to it
    dist.destroy_process_group()


def test_contrastive_does_not_depend_on_the_number_of_processes(tmp_path):
    torch.multiprocessing.start_processes(one_of_two, (str(tmp_path),), 2, start_method="fork")
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    hidden, keep = sentences()
    hidden.requires_grad_()
    loss = objectives.Contrastive(0.1, True)(Output(hidden, keep=keep), torch.arange(4).repeat_interleave(2), 4)
    loss.backward()
    torch.testing.assert_close(parts[0][0] + parts[1][0], loss)
    torch.testing.assert_close(torch.cat([p[1] for p in parts]), hidden.grad)


# ------------------------------------------------------------------------------------------------ global batches


@pytest.mark.parametrize("name", ["bert", "t5", "mixed"])
def test_every_kind_of_label_counts_over_the_whole_step(name, tmp_path):
    """Batches of unequal padding, accumulated, train as one batch does; so do auxiliary losses that are means."""

    def rows(number):
        ids, mask = padded(4, 8, vocab=128, seed=number)
        mask[:, 3 + number :] = 0
        tokens = ids.masked_fill((torch.rand(4, 8, generator=torch.Generator().manual_seed(number)) < 0.6), -100)
        tokens = tokens.masked_fill(mask == 0, -100)
        if name == "t5":
            return {"input_ids": ids, "attention_mask": mask, "labels": tokens,
                    "decoder_input_ids": objectives.shift_right(tokens, 0)}  # fmt: skip
        pair = torch.tensor([[0], [1], [-100 if number else 1], [1]])
        return {"input_ids": ids, "attention_mask": mask, "labels": torch.cat((pair, tokens), 1)}

    class Noisy(Encoder):  # an auxiliary loss that is a mean over real tokens
        def forward(self, *args, **options):
            output = super().forward(*args, **options)
            if name == "mixed":
                assert output.hidden is not None
                output.aux["z"] = output.hidden[output.keep].square().mean()
            return output

    def both(number):
        return {k: torch.cat((rows(0)[k], rows(1)[k])) for k in rows(0)}

    weights = []
    for batches, accumulate in ((rows, 2), (both, 1)):
        model = af.build("t5" if name == "t5" else "bert", "tiny", seed=0)
        model.__class__ = model.__class__ if name == "t5" else Noisy
        objective: Any = objectives.seq2seq if name == "t5" else objectives.MaskedAndNextSentence()
        settings = Settings(steps=1, accumulate=accumulate, warmup=0, grad_clip=1e9)
        done = fit(model, batches, objective, settings, tmp_path / str(accumulate))
        row = json.loads((tmp_path / str(accumulate) / "log.jsonl").read_text().splitlines()[0])
        weights.append((done.loss, row["grad_norm"]))
    assert weights[0] == pytest.approx(weights[1], rel=1e-5)


def test_cutting_a_step_into_batches_of_unequal_padding_changes_neither_loss_nor_gradient():
    model = af.build("gpt", "tiny", seed=0)
    ids = torch.randint(1, 128, (6, 12), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    for row, length in enumerate((12, 3, 9, 1, 12, 5)):
        mask[row, length:] = 0
    labels = objectives.next_tokens(ids, mask)
    total = objectives.counted(labels)

    def run(*parts):
        model.zero_grad()
        losses = []
        for rows in parts:
            losses.append(objectives.causal_lm(model(ids[rows], attention_mask=mask[rows]), labels[rows], total))
            losses[-1].backward()
        return sum(loss.item() for loss in losses), [p.grad.clone() for p in model.parameters() if p.grad is not None]

    loss, gradients = run(slice(0, 6))
    cut_loss, cut = run(slice(0, 1), slice(1, 4), slice(4, 6))
    assert cut_loss == pytest.approx(loss, rel=1e-6)
    torch.testing.assert_close(cut, gradients, rtol=1e-4, atol=1e-7)


def test_auxiliary_losses_count_by_their_share():
    loss, output = torch.tensor(2.0), Output(some(1), aux={"a": torch.tensor(0.5), "b": torch.tensor(0.25)})
    assert float(step_loss.with_auxiliary(loss, output, 0.5)) == pytest.approx(2.375)
    assert step_loss.with_auxiliary(loss, Output(some(1)), 0.5) is loss


@pytest.mark.parametrize("name", af.names())
def test_matrices_decay_and_nothing_else(name):
    model = af.build(name, "tiny")
    paths = {id(p): path for path, p in model.named_parameters()}
    groups = [[paths[id(p)] for p in group["params"]] for group in optim.groups(model, 0.1)]
    if name == "encodec":  # its convolutions have lengths and directions, which do not decay
        assert sorted(*groups) == sorted(paths.values())
        return
    decay, rest = groups
    assert sorted(decay + rest) == sorted(paths.values())
    assert decay and all(path.endswith(".weight") for path in decay)
    never = ("bias", "A_log", "skip", "cls", "positions", "bias.table")
    told = "norm.told.weight"  # a matrix, though it stands in a norm
    assert not [p for p in decay if p.endswith(never) or "embed.tokens" in p or "embed.types" in p]
    assert not [p for p in decay if "norm" in p and not p.endswith(told)]
    wide = [p for p in rest if dict(model.named_parameters())[p].ndim > 1 and ".blocks." in p]
    wide = [p for p in wide if not p.startswith("codec.")]
    assert not [p for p in wide if not p.endswith(("A_log", "scores.0.table"))]


def test_frozen_model_is_an_error():
    model = af.build("gpt", "tiny").requires_grad_(False)
    with pytest.raises(ValueError, match="trainable"):
        optim.groups(model, 0.1)


def test_moments_of_another_model_are_refused():
    small, large = af.build("gpt", "tiny"), af.build("gpt", "tiny", dim=64)
    for model in (small, large):
        model(torch.tensor([[1, 2]])).logits.sum().backward()
    first, second = (optim.make(m, Settings(1)) for m in (small, large))
    first.step()
    with pytest.raises(ValueError, match="does not match this model"):
        optim.restore_moments(second, large, optim.moments(first, small))

"""Item 19: the training loss of a page is the oracle's."""

from __future__ import annotations

import inspect
import random
from typing import Any

import torch
from torch import Tensor

from anyformer.contract import codecs, retrieved
from anyformer.contract.check import LeftOut, check
from anyformer.contract.oracle import Oracle, oracle
from anyformer.contract.probe import Batch, close, draw, expect
from anyformer.contract.subjects import Subject
from anyformer.data.labels import next_tokens, shift_right
from anyformer.hub.tables.weights import Hub
from anyformer.parts.positions import Scaling
from anyformer.skeletons.base import Output
from anyformer.train import objectives
from anyformer.train.likelihood import Likelihood
from anyformer.train.objectives import IGNORE, counted
from anyformer.train.set_prediction import SetPrediction
from anyformer.train.sound_objectives import CTCLoss

HIDDEN = 0.3  # the share of tokens with a label, for masked tokens


@check(19, "files")
def loss_matches_the_oracle(subject: Subject, hub: Hub) -> float:
    """The training objective of a model of this kind gives the oracle's loss for the same labels."""
    side, rng = oracle(subject, hub), random.Random(55)
    takes = inspect.signature(side.theirs.forward).parameters
    if "future_observed_mask" in takes:
        return loss_of_forecast(side, draw(subject, rng, [7, 7, 7]), rng)
    if "labels" not in takes:
        raise LeftOut("its class in transformers has no loss")
    differs = not subject.decodes or any(s.by_length for s in subject.values(Scaling))  # see DEVIATIONS
    batch = draw(subject, rng, [9, 6, 9], "none" if differs else "right", source=[7, 7, 5])
    noise = torch.Generator().manual_seed(rng.randrange(1 << 30))
    if side.books is not None:
        return loss_of_codes(side, batch, noise)
    if "context_input_ids" in takes:
        return loss_of_answers(side, batch)
    ours, labels, inputs = own_loss(side, batch, noise)
    other = {} if side.hub is None else side.hub.inputs
    inputs = {other.get(name, name): value for name, value in inputs.items()}
    with torch.no_grad():
        expected = side.restored()(**inputs, **labels).loss
    expect(expected is not None, "theirs gives no loss")
    return close(ours, expected, "loss")


def loss_of_codes(side: Oracle, batch: Batch, noise: torch.Generator) -> float:
    """The same for a decoder of stacked codes, whose labels stand where they are said."""
    with torch.no_grad():
        logits = side.ours(**batch.inputs).logits
        labels = torch.randint(0, logits.shape[-1], logits.shape[:-1], generator=noise)
        labels = labels if batch.keep is None else labels.masked_fill(~batch.keep[..., None], IGNORE)
        inputs = codecs.stacked(side.inputs(batch), f"{side.ours.target}input_ids")
        expected = side.theirs(**inputs, labels=labels, use_cache=False).loss
    return close(objectives.causal_lm(Output(logits=logits), labels, counted(labels)), expected, "loss")


def loss_of_answers(side: Oracle, batch: Batch) -> float:
    """The same for a generator that reads passages, whose loss is the sum of each answer's, beginning included."""
    inputs = dict(batch.inputs)
    labels = inputs.pop("decoder_input_ids")
    keep = torch.ones_like(labels) if (mask := inputs.pop("decoder_attention_mask", None)) is None else mask
    pad = side.theirs.config.generator.pad_token_id
    labels = torch.where(labels == pad, pad + 1, labels).masked_fill(keep == 0, IGNORE)
    target = shift_right(labels, side.ours.begin_id, pad)
    whole = torch.cat((target, labels[:, -1:]), 1).masked_fill(torch.cat((target, labels[:, -1:]), 1) == IGNORE, pad)
    with torch.no_grad():
        out = side.ours(**inputs, decoder_input_ids=target)
        expected = retrieved.call(side.theirs, inputs, labels=whole)["loss"].sum()
    return close(objectives.seq2seq(out, labels, 1.0), expected, "loss of answers")


def loss_of_forecast(side: Oracle, batch: Batch, rng: random.Random) -> float:
    """The same for forecasters, with a third of the values ahead missing."""
    noise, model, front = torch.Generator().manual_seed(rng.randrange(1 << 30)), side.ours, side.ours.embed
    shape = (len(batch), front.horizon, front.size)[: 2 + (front.size > 1)]
    values = torch.randint(0, 9, shape, generator=noise).float()  # counts are in the range of every law
    there = torch.rand(shape, generator=noise) > 0.33
    values = values.masked_fill(~there, 0.0)
    ahead = batch.with_(future_values=values)
    objective, labels = Likelihood.of(model), values.masked_fill(~there, float("nan"))
    with torch.no_grad():
        takes = {n: v for n, v in ahead.inputs.items() if n in model.inputs()}
        out = model(**takes)
        expected = side.restored()(**ahead.inputs, future_observed_mask=there.float(), use_cache=False).loss
    return close(objective(out, labels, float(objective.counted(labels))), expected, "loss")


def own_loss(side: Oracle, batch: Batch, noise: torch.Generator) -> tuple[Tensor, dict[str, Any], dict[str, Any]]:
    """Our loss of a batch with random labels; the labels and the inputs in their form."""
    model, inputs = side.ours, side.inputs(batch)
    if "decoder_input_ids" in inputs:
        keep = inputs.pop("decoder_attention_mask").bool()
        labels = inputs.pop("decoder_input_ids").masked_fill(~keep, IGNORE)
        pad = getattr(side.theirs.config, "pad_token_id", None) or 0
        target = shift_right(labels, model.begin_id, pad)
        with torch.no_grad():
            out = model(**inputs, decoder_input_ids=target)
        return objectives.seq2seq(out, labels, counted(labels)), {"labels": labels}, inputs
    with torch.no_grad():
        out = model(**batch.inputs)
    if model.generates:
        ids, mask = inputs["input_ids"], inputs.get("attention_mask")
        labels = next_tokens(ids, mask)
        theirs = ids if mask is None else ids.masked_fill(mask == 0, IGNORE)
        return objectives.causal_lm(out, labels, counted(labels)), {"labels": theirs}, inputs
    blank = getattr(getattr(model.heads, "ctc", None), "blank", 0)
    return encoder_loss(out, batch, inputs, noise, blank)


def encoder_loss(
    out: Any, batch: Batch, inputs: dict[str, Any], noise: torch.Generator, blank: int
) -> tuple[Tensor, dict[str, Any], dict[str, Any]]:
    """The same for heads of an encoder: masked tokens, the next sentence, classes."""
    if out.heads.keys() == {"classes", "boxes"}:
        return set_loss(out, inputs, noise)
    if out.heads.keys() == {"ctc"}:
        return ctc_loss(out, blank, inputs, noise)
    labels: dict[str, Any] = {}
    for name, scores in out.heads.items():
        drawn = torch.randint(0, scores.shape[-1], scores.shape[:-1], generator=noise)
        if drawn.ndim == 2:
            hidden = torch.rand(drawn.shape, generator=noise) < HIDDEN
            hidden[0, 0] = True
            drawn = drawn.masked_fill(~hidden if batch.keep is None else ~hidden | ~batch.keep, IGNORE)
        labels[name] = drawn
    if not labels:
        raise LeftOut("it has no head to train")
    if set(labels) == {"mlm", "nsp"}:
        both = objectives.MaskedAndNextSentence()
        joined = torch.cat((labels["nsp"][:, None], labels["mlm"]), 1)
        theirs = {"labels": labels["mlm"], "next_sentence_label": labels["nsp"]}
        return both(out, joined, both.counted(joined)), theirs, inputs
    (name, drawn), *more = labels.items()
    if more:
        raise LeftOut(f"no objective trains its heads {', '.join(labels)} at once")
    objective = objectives.masked_lm if name == "mlm" else objectives.classification
    return objective(out, drawn, counted(drawn)), {"labels": drawn}, inputs


def ctc_loss(
    out: Any, blank: int, inputs: dict[str, Any], noise: torch.Generator
) -> tuple[Tensor, dict[str, Any], dict[str, Any]]:
    """The same for the symbols of a sound, summed, as in theirs; the last row has fewer."""
    frames, vocab = out.logits.shape[1:]
    labels = torch.randint(0, vocab - 1, (len(out.logits), max(1, frames // 2)), generator=noise)
    labels[labels >= blank] += 1
    labels[-1, 1:] = IGNORE
    return CTCLoss(blank)(out, labels, 1.0), {"labels": labels}, inputs


def set_loss(out: Any, inputs: dict[str, Any], noise: torch.Generator) -> tuple[Tensor, dict[str, Any], dict[str, Any]]:
    """The same for a set of boxes; the first picture has none."""
    rows, most, none = len(out.logits), min(3, out.logits.shape[1]), out.logits.shape[2] - 1
    labels = torch.full((rows, most, 5), float(IGNORE))
    for row in range(1, rows):
        count = 1 + (row + 1) % most
        size = torch.empty(count, 2).uniform_(0.1, 0.5, generator=noise)
        centre = size / 2 + (1 - size) * torch.rand(count, 2, generator=noise)
        labels[row, :count] = torch.cat((torch.randint(0, none, (count, 1), generator=noise), centre, size), 1)
    real = [own[own[:, 0] != IGNORE] for own in labels]
    theirs = [{"class_labels": own[:, 0].long(), "boxes": own[:, 1:]} for own in real]
    objective = SetPrediction()
    return objective(out, labels, objective.counted(labels)), {"labels": theirs}, inputs

"""Preferences: losses as their formulas, the reference, what is refused, and a run that learns one."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import anyformer as af
from anyformer.cli import main
from anyformer.hub.text.tokenizer import Tokenizer
from anyformer.parts import unscored
from anyformer.skeletons.base import Output
from anyformer.train import Settings, align
from anyformer.train.alignment_report import Report, perplexity, warning
from anyformer.train.preferences import BETAS, GOOD, IGNORE, Preference, at_start, log_probs, marked
from anyformer.train.step_loss import Loss
from anyformer.train.tasks import preferring, tables
from tests.later import later

torch.set_num_threads(1)
KINDS: tuple[Any, ...] = ("dpo", "ipo", "simpo", "kto")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small LLaMA whose tokens are bytes."""
    made = af.build("llama", "tiny", vocab=257, context=128, seed=0)
    made.tokenizer = Tokenizer.bytes_level()
    folder = tmp_path_factory.mktemp("model")
    made.save(folder)
    return folder


def rows(count: int = 24) -> list[dict[str, Any]]:
    """The better answer ends with a point."""
    return [{"prompt": f"say {i}", "chosen": f"it is {i}.", "rejected": f"it is {i}!"} for i in range(count)]


def write(path: Path, some: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in some))
    return path


def pairs(tmp_path: Path, kind: Any, some: list[dict[str, Any]] | None = None, limit: int = 64) -> Any:
    tokenizer = Tokenizer.bytes_level()
    return preferring.pairs(tables.read(write(tmp_path / "p.jsonl", some or rows(6)), None), kind, tokenizer, limit)


def loaded(folder: Path) -> Any:
    return af.load(folder).double().eval()


def loss_of(model: Any, some: Any, objective: Preference) -> torch.Tensor:
    batch = preferring.batch_of([answer for pair in some for answer in pair], 0)
    labels = batch.pop("labels")
    return objective(model(**batch), labels, objective.counted(labels))


def moved(model: Any) -> Any:
    """The same model after a step in some direction."""
    other, generator = copy.deepcopy(model), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in other.parameters():
            weight += 0.05 * torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
    return other


@pytest.mark.parametrize("kind", KINDS)
def test_the_reference_itself_has_margin_0_and_its_own_loss(model, tmp_path, kind):
    lm = loaded(model)
    some = preferring.scored(lm, pairs(tmp_path, kind), 4, 0)
    objective = Preference(kind, BETAS[kind], 1.0 if kind == "simpo" else 0.0)
    loss = float(loss_of(lm, some, objective).detach())
    expected = at_start(kind, BETAS[kind])
    if kind != "simpo":
        assert loss == pytest.approx(expected, abs=1e-9) and float(objective.metrics["margin"]) == pytest.approx(
            0, abs=1e-9
        )
    if kind == "dpo":
        assert loss == pytest.approx(math.log(2), abs=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_losses_are_their_formulas_one_row_at_a_time(model, tmp_path, kind):
    """Each answer alone, no padding, no batch, plain Python."""
    lm = loaded(model)
    some = preferring.scored(
        lm, pairs(tmp_path, kind, [*rows(4), {"prompt": "x", "chosen": "a", "rejected": "b b b"}]), 4, 0
    )
    new, beta = moved(lm), BETAS[kind]

    def score(answer: Any) -> float:
        out = new(input_ids=torch.tensor([answer.ids])).logits[0].detach().log_softmax(-1)
        return sum(float(out[t, label]) for t, label in enumerate(answer.labels) if label != IGNORE)

    own = [[score(a) for a in pair] for pair in some]
    r = [[o - a.reference for o, a in zip(values, pair, strict=True)] for values, pair in zip(own, some, strict=True)]
    length = [[a.length for a in pair] for pair in some]
    sigmoid = lambda x: 1 / (1 + math.exp(-x))  # noqa: E731
    if kind == "dpo":
        each = [-math.log(sigmoid(beta * (a - b))) for a, b in r]
    elif kind == "ipo":
        each = [(a / n - b / m - 1 / (2 * beta)) ** 2 for (a, b), (n, m) in zip(r, length, strict=True)]
    elif kind == "simpo":
        each = [-math.log(sigmoid(beta * (a / n - b / m) - 1.0)) for (a, b), (n, m) in zip(own, length, strict=True)]
    else:
        k = max(0.0, sum(b for _, b in r) / len(r))
        each = [
            1 - sigmoid(beta * (a - k if pair[0].kind == GOOD else k - a)) for (a, _), pair in zip(r, some, strict=True)
        ]
    found = loss_of(new, some, Preference(kind, beta, 1.0 if kind == "simpo" else 0.0))
    assert float(found.detach()) == pytest.approx(sum(each) / len(each), abs=1e-8)


@pytest.mark.parametrize("kind", KINDS)
def test_logits_of_answers_alone_give_the_loss_and_gradients_of_whole_ones(model, tmp_path, kind):
    lm = loaded(model)
    some = preferring.scored(moved(lm), pairs(tmp_path, kind), 4, 0)
    objective = Preference(kind, BETAS[kind], 1.0 if kind == "simpo" else 0.0)
    whole = torch.autograd.grad(loss_of(lm, some, objective), list(lm.parameters()))
    with unscored.in_pieces(0):
        alone = loss_of(lm, some, objective)
    for a, b in zip(whole, torch.autograd.grad(alone, list(lm.parameters())), strict=True):
        assert torch.allclose(a, b, atol=1e-12)
    assert Loss(lm, objective, Settings(1, chunked_loss="on", warmup=0)).pieces == 0


def test_equal_answers_go_through_the_model_once(model, tmp_path, monkeypatch):
    lm, seen = loaded(model), []
    answers = [answer for pair in pairs(tmp_path, "dpo") for answer in (*pair, pair[0])]
    expected = preferring.probabilities(lm, answers[::3], 4, 0)
    lm.register_forward_pre_hook(lambda _, args, inputs: seen.append(len(inputs["input_ids"])), with_kwargs=True)
    found = preferring.probabilities(lm, answers, 4, 0)
    assert found[::3] == found[2::3] == pytest.approx(expected, abs=1e-9) and sum(seen) == len(answers) * 2 // 3


def test_the_gradient_at_the_start_is_the_closed_form(model, tmp_path):
    """-beta / 2 of the difference of the gradients of log p(good) and log p(bad)."""
    lm = loaded(model)
    some = preferring.scored(lm, pairs(tmp_path, "dpo", rows(1)), 2, 0)
    weights = list(lm.parameters())
    found = torch.autograd.grad(loss_of(lm, some, Preference("dpo", 0.3)), weights)
    batch = preferring.batch_of(list(some[0]), 0)
    own = log_probs(lm(input_ids=batch["input_ids"]).logits, batch["labels"][:, 2:]).sum(1)
    expected = torch.autograd.grad(-0.15 * (own[0] - own[1]), weights)
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_precomputed_references_are_those_of_a_live_model(model, tmp_path, kind):
    """Batch by batch, of any size, and with a model that has moved on since."""
    lm = loaded(model)
    some = preferring.scored(lm, pairs(tmp_path, kind, rows(7)), 3, 0)
    live = preferring.scored(lm, some[2:5], 1, 0)
    assert [[a.reference for a in p] for p in some[2:5]] == [
        pytest.approx([a.reference for a in p], abs=1e-9) for p in live
    ]


def test_references_survive_the_way_through_labels():
    values = [-123.456789012345, 0.0, -1e-300, -3.0e5]
    labels = torch.tensor([marked(v, 1, [5, IGNORE]) for v in values])
    from anyformer.train.preferences import references

    assert references(labels).tolist() == values and labels[:, 2:].tolist() == [[5, IGNORE]] * 4


def test_padding_on_either_side_packing_and_cuts_change_no_log_probability(model, tmp_path):
    lm = loaded(model)
    some = [*rows(3), {"prompt": "p" * 40, "chosen": "abc", "rejected": "q" * 50}]
    answers = [a for pair in pairs(tmp_path, "dpo", some) for a in pair]
    alone = [
        float(log_probs(lm(input_ids=torch.tensor([a.ids])).logits, torch.tensor([a.labels])).sum()) for a in answers
    ]
    assert preferring.probabilities(lm, answers, 8, 0) == pytest.approx(alone, abs=1e-9)
    width = max(len(a.ids) for a in answers)
    left = torch.tensor([[0] * (width - len(a.ids)) + list(a.ids) for a in answers])
    labels = torch.tensor([[IGNORE] * (width - len(a.ids)) + list(a.labels) for a in answers])
    mask = torch.tensor([[0] * (width - len(a.ids)) + [1] * len(a.ids) for a in answers])
    assert log_probs(lm(input_ids=left, attention_mask=mask).logits, labels).sum(1).tolist() == pytest.approx(
        alone, abs=1e-9
    )
    packed, documents = [i for a in answers[:4] for i in a.ids], [n for n, a in enumerate(answers[:4]) for _ in a.ids]
    out = lm(input_ids=torch.tensor([packed]), document_ids=torch.tensor([documents])).logits
    each = log_probs(out, torch.tensor([[i for a in answers[:4] for i in a.labels]]))[0]
    sums = [float(each[torch.tensor(documents) == n].sum()) for n in range(4)]
    assert sums == pytest.approx(alone[:4], abs=1e-9)
    assert answers[-1].length < 50 and len(answers[-1].ids) == 64  # cut at its end


def test_log_probs_and_losses_are_those_of_trl(model, tmp_path):
    """The same logits through TRL's own functions."""
    utils = pytest.importorskip("trl.trainer.utils", reason="TRL is not installed")
    from types import SimpleNamespace

    from trl.experimental.cpo import CPOTrainer

    lm = loaded(model)
    some = preferring.scored(lm, pairs(tmp_path, "dpo", rows(5)), 4, 0)
    new = moved(lm)
    answers = [a for pair in some for a in pair]
    batch = preferring.batch_of(answers, 0)
    logits, labels = new(**{k: v for k, v in batch.items() if k != "labels"}).logits, batch["labels"][:, 2:]
    theirs = utils.selective_log_softmax(logits, labels.clamp(min=0)) * (labels != IGNORE)
    ours = log_probs(logits, labels)
    assert float((ours - theirs).abs().max()) < 1e-9
    sums, lengths = theirs.sum(1), (labels != IGNORE).sum(1)
    self: Any = SimpleNamespace(
        loss_type="simpo",
        simpo_gamma=1.0,
        beta=2.0,
        label_smoothing=0.0,
        alpha=0.0,
        accelerator=SimpleNamespace(device="cpu"),
    )
    expected = CPOTrainer.cpo_loss(self, (sums / lengths)[0::2], (sums / lengths)[1::2])[0].mean()
    assert float(loss_of(new, some, Preference("simpo", 2.0, 1.0)).detach()) == pytest.approx(float(expected), abs=1e-9)


@pytest.mark.parametrize("kind", ["dpo", "ipo", "kto"])
def test_a_batch_has_the_loss_that_trls_trainer_computes(model, tmp_path, kind):
    """transformers' LLaMA from the files of ours, in TRL's trainer: its collator, its reference, its loss."""
    trl = pytest.importorskip("trl", reason="TRL is not installed")
    datasets = pytest.importorskip("datasets")
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    lm = loaded(model)
    new = moved(lm)
    new.float().save(tmp_path / "new")
    some = preferring.scored(lm, pairs(tmp_path, kind, rows(4)), 4, 0)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.bytes_level().core, eos_token="<|endoftext|>", pad_token="<|endoftext|>"
    )
    config: dict[str, Any] = dict(
        output_dir=str(tmp_path / "trl"), report_to="none", use_cpu=True, beta=BETAS[kind], max_length=64, bf16=False,
        per_device_train_batch_size=4, disable_tqdm=True,
    )  # fmt: skip
    models = [AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64) for path in (tmp_path / "new", model)]
    if kind == "kto":
        args = trl.KTOConfig(**{**config, "per_device_train_batch_size": 8, "train_sampling_strategy": "sequential"})
        data = [{"prompt": p.prompt + "\n", "completion": p.text, "label": p.kind == GOOD} for p, _ in some]
        trainer = trl.KTOTrainer(
            *models, args=args, train_dataset=datasets.Dataset.from_list(data), processing_class=tokenizer
        )
    else:
        args = trl.DPOConfig(**config, loss_type={"dpo": "sigmoid", "ipo": "ipo"}[kind])
        data = [{"prompt": a.prompt + "\n", "chosen": a.text, "rejected": b.text} for a, b in some]
        trainer = trl.DPOTrainer(
            *models, args=args, train_dataset=datasets.Dataset.from_list(data), processing_class=tokenizer
        )
    inputs = trainer.data_collator([trainer.train_dataset[i] for i in range(len(data))])
    theirs = float(trainer._compute_loss(trainer.model, inputs, False))
    if kind == "kto":  # its answers to other prompts are those of the row before
        some = [
            (a, preferring._answer(a.prompt, some[i - 1][0].text, 2, Tokenizer.bytes_level(), 64, ""))
            for i, (a, _) in enumerate(some)
        ]
        some = preferring.scored(lm, some, 4, 0)
    ours = float(loss_of(af.load(tmp_path / "new").double(), some, Preference(kind, BETAS[kind])))
    assert ours == pytest.approx(theirs, abs=1e-5)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a", "chosen": "same", "rejected": "same"}, "row 2: chosen and rejected are equal"),
        ({"prompt": "a", "chosen": "", "rejected": "b"}, "row 2: chosen is ''"),
        ({"prompt": "p" * 200, "chosen": "a", "rejected": "b"}, "row 2, chosen: no token of the answer is within 64"),
        ({"prompt": "a", "chosen": "c" * 80 + "1", "rejected": "c" * 80 + "2"}, "are equal within 64 tokens"),
        ({"prompt": None, "chosen": "a", "rejected": "b"}, "row 2: 'prompt' has no value"),
    ],
)
def test_rows_that_teach_nothing_are_refused(tmp_path, row, message):
    with pytest.raises(ValueError, match=message):
        pairs(tmp_path, "dpo", [*rows(1), row])


def test_columns_and_labels_that_do_not_fit_are_named(tmp_path):
    judged = [{"prompt": "a", "response": "b", "label": "yes"}]
    with pytest.raises(ValueError, match="dpo needs the columns prompt, chosen, rejected; there are label, prompt"):
        pairs(tmp_path, "dpo", judged)
    with pytest.raises(ValueError, match="label is 'yes'; it must be true or false"):
        pairs(tmp_path, "kto", judged)
    with pytest.raises(ValueError, match="both good and bad"):
        pairs(tmp_path, "kto", [{"prompt": p, "response": "b", "label": True} for p in "ab"])
    made = pairs(tmp_path, "kto", [{"prompt": p, "response": r, "label": r == "x"} for p in "ab" for r in "xy"])
    assert len(made) == 4 and all(one.prompt == other.prompt and one.text != "" for one, other in made)
    with pytest.raises(ValueError, match="row 1 of the batch has no token"):
        Preference("dpo", 0.1).check(torch.tensor([marked(0, 1, [3]), marked(0, 0, [IGNORE])]))
    with pytest.raises(ValueError, match="need the logits"):
        Preference("dpo", 0.1)(Output(hidden=torch.zeros(2, 3, 4)), torch.zeros(2, 5, dtype=torch.long), 1)


@pytest.mark.parametrize("kind", ["dpo", "kto", *later("ipo", "simpo")])  # of pairs, of judged answers
def test_a_run_learns_the_preference_resumes_and_reports_what_its_files_say(model, tmp_path, kind):
    data = write(tmp_path / "data.jsonl", rows())
    options: dict[str, Any] = dict(
        data=str(data),
        loss=kind,
        lr=3e-3,
        batch=8,
        device="cpu",
        quiet=True,
        rank=4,
        save_every=10,
        schedule="constant",
        warmup=2,
    )
    done = align(str(model), out=tmp_path / "whole", steps=30, **options)
    assert done.after is not None and done.folder is not None
    assert done.before.margin == pytest.approx(0, abs=1e-6) or kind == "simpo"
    assert done.after.margin > 0.01 and done.after.accuracy == 1 and done.after.kl > 0 and done.before.kl == 0
    align(str(model), out=tmp_path / "parts", steps=10, **options)
    again = align(str(model), out=tmp_path / "parts", steps=30, resume=True, **options)
    assert again.after is not None and again.after.margin == pytest.approx(done.after.margin, abs=1e-5)
    log = [json.loads(line) for line in (tmp_path / "whole/log.jsonl").read_text().splitlines()]
    first = next(row for row in log if "loss" in row)
    assert {"good", "bad", "margin"} <= set(first)
    if (start := at_start(kind, BETAS[kind])) is not None:
        assert first["loss"] == pytest.approx(start, abs=1e-5) and first["margin"] == pytest.approx(0, abs=1e-5)
    kept = json.loads((tmp_path / "whole/report.json").read_text())
    assert kept["after"]["margin"] == pytest.approx(done.after.margin) and len(kept["after"]["answers"]) > 0
    # what the saved model says is what the run reported
    lm, tokenizer = af.load(done.folder), Tokenizer.bytes_level()
    held = [
        answer
        for pair in pairs(tmp_path, "dpo", rows())
        for answer in pair
        if answer.prompt in kept["after"]["answers"]
    ]
    good = preferring.probabilities(lm, [a for a in held if a.kind == GOOD], 4, tokenizer.pad_id)
    assert sum(good) / len(good) == pytest.approx(done.after.good, abs=1e-3)


def test_the_warning_comes_when_chosen_answers_fall_and_written_ones_grow():
    def at(good: float, length: float) -> Report:
        return Report(0.0, 0.0, good, 0.0, 0.0, 0.0, 1.0, length, {})

    assert "learned length" in warning(at(-10, 20), at(-12, 30))
    assert not warning(at(-10, 20), at(-12, 21)) and not warning(at(-10, 20), at(-9, 30))


def test_the_price_is_the_perplexity_of_plain_text(model):
    lm = af.load(model)
    assert 100 < perplexity(lm) < 600  # random weights, 257 tokens


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--gamma", "1"], "gamma=1.0 is the margin of simpo"),
        (["--beta", "0"], "beta must be above 0"),
        (["--held-out", "2"], "held_out must be a share"),
        (["--label-smoothing", "0.1"], "losses over tokens"),
        (["--context", "6"], "context=6 must be"),
    ],
)
def test_mistakes_on_the_command_line(model, tmp_path, capsys, words, message):
    data = write(tmp_path / "data.jsonl", rows())
    given = ["align", "dpo", str(model), "--data", str(data), "--out", str(tmp_path / "out"), "--device", "cpu"]
    assert main([*given, *words]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out" / "config.yaml").exists()


def test_only_decoders_of_text_are_aligned(tmp_path, capsys):
    bert = af.build("bert", "tiny", vocab=257, seed=0)
    bert.tokenizer = Tokenizer.bytes_level()
    bert.save(tmp_path / "bert")
    data = write(tmp_path / "data.jsonl", rows())
    assert main(["align", "dpo", str(tmp_path / "bert"), "--data", str(data), "--out", str(tmp_path / "out")]) == 2
    assert "continues no texts" in capsys.readouterr().err

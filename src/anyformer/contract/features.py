"""Items 13 and 16: general features work for every model, and 0 is a value, not a default."""

from __future__ import annotations

import contextlib
import functools
import random
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from anyformer.compress import int8, nf4
from anyformer.contract.check import LeftOut, check, decodes, writes
from anyformer.contract.hyper import alternatives, declared, differ, edited, fingerprint, key_of, options
from anyformer.contract.kernels import SOFTMAX
from anyformer.contract.oracle import fresh
from anyformer.contract.probe import Batch, Failed, close, draw, expect, goal, outputs, run, same
from anyformer.contract.subjects import Subject, apart_from_tiny, first_of, redrawn, whole
from anyformer.contract.training import in_full, shallow
from anyformer.core.recipe import Recipe
from anyformer.core.taps import Taps
from anyformer.edge.export import export, inputs
from anyformer.skeletons import Skeleton
from anyformer.train import lora

TINY = 1e-6  # a smaller float, added to others, counts as 0


@check(13, "model", checkpoint=True, later=apart_from_tiny)
def taps_change_nothing(subject: Subject) -> float:
    """Taps on every module, and on attention weights, change no output, bit for bit."""
    model = subject.model
    batch = draw(subject, random.Random(40), [7 + model.room(), 4 + model.room()], "left")
    before, every = run(model, batch), speaking(model, batch)
    inner = [f"{name}.weights" for name, module in model.named_modules() if isinstance(module, SOFTMAX)]
    with Taps(model, *every, *inner) as taps, torch.no_grad():
        after = outputs(model(**batch.inputs))
    for name in inner:
        sums = taps[name].sum(-1)  # (B, H, T)
        expect(bool(((sums - 1).abs().lt(1e-5) | sums.eq(0)).all()), f"{name}: a row sums to neither 1 nor 0")
    same(after, before, "with taps", 0.0, 0.0)
    return same(run(model, batch), before, "after taps", 0.0, 0.0)


def speaking(model: nn.Module, batch: Batch) -> list[str]:
    """The paths that taps can record: modules that run on a batch and return tensors."""
    speakers: dict[str, None] = {}

    def note(path: str, output: Any) -> None:
        values = output.values() if isinstance(output, dict) else output if isinstance(output, tuple) else (output,)
        if path and any(isinstance(v, Tensor) for v in values):
            speakers[path] = None

    paths = [(path, module) for path, module in model.named_modules()]
    hooks = [m.register_forward_hook(lambda m, inputs, output, path=p: note(path, output)) for p, m in paths]
    run(model, batch)
    for hook in hooks:
        hook.remove()
    return list(speakers)


@check(13, "model", later=apart_from_tiny)
def copies_are_independent(subject: Subject) -> float:
    """A deep copy gives the same outputs, and changing it does not change the original."""
    batch = draw(subject, random.Random(41), [5, 5])
    before, copy = run(subject.model, batch), fresh(subject.model)
    worst = same(run(copy, batch), before, "copy", 0.0, 0.0)
    with torch.no_grad():
        for parameter in copy.parameters():
            parameter.add_(1.0)
    return max(worst, same(run(subject.model, batch), before, "after the copy changed", 0.0, 0.0))


def multiplies(subject: Subject) -> str | None:
    """The reason why checks of linear layers do not apply, or None."""
    linear = any(isinstance(module, nn.Linear) for module in subject.outline.modules())
    return None if linear else "it has no linear layer: its matrices are convolutions"


@check(13, "model", needs=multiplies, later=apart_from_tiny)
def lora_merges_to_the_same_function(subject: Subject) -> float:
    """New adapters change nothing; they alone get gradients; merged they are plain matrices of the same function."""
    return adapted_and_merged(subject, fresh(subject.model), dora=False)


@check(13, "model", needs=multiplies, later=apart_from_tiny)
def dora_merges_to_the_same_function(subject: Subject) -> float:
    """The same for adapters with a learned length of each row."""
    return adapted_and_merged(subject, fresh(subject.model), dora=True)


@check(13, "model", needs=multiplies, later=apart_from_tiny)
def adapters_on_4_bits_merge_to_the_same_function(subject: Subject) -> float:
    """The same on matrices in 4 bits; merging gives full matrices at the old paths."""
    model = fresh(subject.model)
    nf4.quantise(model)
    return adapted_and_merged(subject, model, dora=False)


def adapted_and_merged(subject: Subject, model: Any, dora: bool) -> float:
    """Adds adapters to every linear layer of the model, trains, redraws and merges them, and compares."""
    room = subject.model.room()
    batch = draw(subject, random.Random(42), [7 + room, 4 + room], "left")
    before, paths = run(model, batch), [n for n, _ in subject.model.named_parameters()]
    scale = max(1.0, *(float(v.abs().max()) for v in before.values()))
    adding = lambda: lora.add(model, rank=2, targets=("**",), dora=dora)  # noqa: E731
    worst = same(run_with(model, adding, batch), before, "new adapters", atol=1e-5 * scale)
    goal(model, batch).backward()
    for name, parameter in model.named_parameters():
        expect((parameter.grad is not None) == ("lora_" in name), f"{name}: gradient {parameter.grad is not None}")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.1)
    adapted = run(model, batch)
    expect(any(not torch.equal(adapted[n], before[n]) for n in before), "the adapters have no effect")
    merged = run_with(model, lambda: lora.merge(model), batch)
    expect([n for n, _ in model.named_parameters()] == paths, "after merging, the parameters have other names")
    scale = max(1.0, *(float(v.abs().max()) for v in adapted.values()))
    return max(worst, same(merged, adapted, "merged", atol=1e-5 * scale))


def run_with(model: nn.Module, change: Any, batch: Any) -> dict[str, Tensor]:
    """The outputs of a model for a batch after a change."""
    change()
    return run(model, batch)


@check(13, "model", needs=multiplies, later=apart_from_tiny)
def int8_error_is_within_its_bound(subject: Subject) -> float:
    """In 8 bits, the output of every linear layer is within the stated bound of the original one for the same input."""
    return within_its_bound(subject, int8.quantise, int8.Int8Linear)


@check(13, "model", needs=multiplies, later=apart_from_tiny)
def four_bit_error_is_within_its_bound(subject: Subject) -> float:
    """The same in 4 bits."""
    return within_its_bound(subject, nf4.quantise, nf4.Nf4Linear)


def within_its_bound(subject: Subject, quantise: Any, kind: type[nn.Module]) -> float:
    """Compares every linear layer with its quantised form, both on the inputs of the quantised model."""
    room = subject.model.room()
    batch = draw(subject, random.Random(43), [7 + room, 4 + room], "left")
    model, plain = fresh(subject.model), dict(fresh(subject.model).named_modules())
    coverage = quantise(model)
    expect(len(coverage.layers) == coverage.of > 0, f"{coverage.layers} of {coverage.of} linear layers")
    worst, hooks = [0.0], []

    def compare(path: str) -> Any:
        def hook(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            difference, bound = (output - plain[path](inputs[0])).abs(), module.bound(inputs[0])
            expect(
                bool((difference <= bound).all()), f"{path}: off by {difference.max():.2e}, stated {bound.max():.2e}"
            )
            worst[0] = max(worst[0], float(difference.max()))

        return hook

    for path, module in model.named_modules():
        if isinstance(module, kind):
            hooks.append(module.register_forward_hook(compare(path)))
    quantised = run(model, batch)
    expect(len(hooks) == coverage.of, "not every layer was seen")
    expect(all(v.isfinite().all() for v in quantised.values()), "a quantised output is not finite")
    return worst[0]


@contextlib.contextmanager
def _read_back() -> Iterator[dict[bytes, Any]]:
    """The programs that PyTorch reads from files meanwhile, by content: to read one takes as long as to export it."""
    plain, programs = torch.export.load, dict[bytes, Any]()

    def load(file: Any) -> Any:
        content = file.read()
        file.seek(0)
        return programs.setdefault(content, plain(file))

    with mock.patch.object(torch.export, "load", load):
        yield programs


@check(13, "model", needs=in_full, later=lambda s: s.name not in first_of(Skeleton))
def export_runs_and_matches(subject: Subject) -> float:
    """The exported program of a model with one block of each kind, for any batch and length, runs without anyformer
    and gives the model's numbers."""
    model = redrawn(shallow(subject.recipe).build()).eval()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.pt2"
        try:
            with _read_back() as files:
                exported = export(model, path)
        except ValueError as error:
            raise Failed(f"refused by `export`: {error}") from error
        expect(exported.bytes > 0 and len(exported.checked) > 1, "the program was not compared on other sizes")
        expect(path.read_bytes() in files, "the file is not the one that was read back and compared")
        program = files[path.read_bytes()].module()
        batch = Batch(inputs(model, batch=3, time=11, source=6))
        expected = run(model, batch)
        scale = max(1.0, *(float(v.abs().max()) for v in expected.values()))
        with torch.no_grad():
            again = program(**batch.inputs)
        return max(close(again[n], expected[n], f"the program's {n}", atol=1e-5 * scale) for n in again)


@check(16, "model", needs=lambda s: writes(s) or in_full(s))
def generation_honours_zero(subject: Subject) -> float:
    """Temperature 0 is greedy, seed 0 is a seed, 0 new tokens are none; senseless values are refused by name."""
    prompts = [[5, 6, 7], [8, 9]]
    write = lambda **options: subject.model.generate(prompts, **{"max_new_tokens": 6, **options})  # noqa: E731
    greedy = write(temperature=0)
    expect(greedy == write(temperature=0.0, seed=1, top_k=3) == write(cache=False), "temperature 0 is not greedy")
    expect(greedy == [by_hand(subject, row, 6) for row in prompts], "greedy is not the likeliest token each time")
    expect(write(max_new_tokens=0) == [[], []], "max_new_tokens=0 gives tokens")
    hot = {"temperature": 3.0, "max_new_tokens": 12}
    expect(write(**hot, seed=0) == write(**hot, seed=0), "seed=0 is not reproducible")
    expect(write(**hot, seed=0) != write(**hot, seed=1), "the seed has no effect")
    expect(write(**hot, seed=0, min_p=0) == write(**hot, seed=0), "min_p=0 is not 'all'")
    expect(write(**hot, seed=5, top_k=1) == write(temperature=0, max_new_tokens=12), "top_k=1 is not greedy")
    for name, value in {
        "top_k": 0,
        "top_p": 0,
        "repetition_penalty": 0,
        "temperature": -1,
        "max_new_tokens": -1,
    }.items():
        try:
            write(**{name: value})
        except ValueError as error:
            expect(name in str(error), f"the error does not name {name}: {error}")
        else:
            expect(False, f"{name}={value} was accepted")
    return 0.0


def by_hand(subject: Subject, prompt: list[int], count: int) -> list[int]:
    """The greedy continuation, recomputed over the whole text for each token."""
    text = [subject.model.begin_id] if subject.has_source else list(prompt)
    first = len(text)
    for _ in range(count):
        ids = torch.tensor([text])
        inputs = (
            {"input_ids": torch.tensor([prompt]), "decoder_input_ids": ids}
            if subject.has_source
            else {"input_ids": ids}
        )
        with torch.no_grad():
            scores = subject.model(**inputs).logits[0, -1]
        scores[[i for i in subject.model.placeholders if i < len(scores)]] = float("-inf")  # they are never written
        text.append(int(scores.argmax()))
    return text[first:]


@check(16, "model", needs=in_full)
def zero_differs_from_the_default(subject: Subject) -> float:
    """0 for any option is refused by a ValueError, or means 0: never the default. An option is tried in the first
    subject with it."""
    usual, earlier, tried = fingerprint(subject, subject.recipe), tried_before(subject), 0
    for path, owner, option, value in numeric(subject.recipe):
        if key_of(owner, option) in earlier:
            continue
        tried, kinds = tried + 1, declared(owner, option)
        try:
            zero = subject.recipe.but({path: 0})
            with warnings.catch_warnings(action="ignore"):
                zero.build()
        except ValueError:
            continue
        except (ArithmeticError, RuntimeError, TypeError, IndexError) as error:
            kind = type(error).__name__
            raise Failed(f"{path}=0 is refused by a {kind}: {error}; a ValueError should name the option") from None
        default = subject.recipe.but({path: None}) if "None" in kinds else subject.recipe
        actual, expected = fingerprint(subject, zero), fingerprint(subject, default)
        counts = (
            value is None
            or "None" in kinds
            or any(
                differ(usual, fingerprint(subject, other))
                for other in edited(subject.recipe, path, alternatives(option, value, kinds))
            )
        )
        if counts and actual is not None and expected is not None:
            expect(differ(actual, expected), f"{path}=0 acts as {None if 'None' in kinds else value}")
    if not tried:
        raise LeftOut("every option of its parts is checked on an earlier page")
    return 0.0


def numeric(recipe: Recipe) -> Iterator[tuple[str, Any, str, Any]]:
    """The options with a number other than 0: (path, owner, option, value)."""
    for path, owner, option, value in options(recipe):
        kinds = declared(owner, option)
        number = value is None or type(value) in (int, float)
        if number and value != 0 and ("int" in kinds or "float" in kinds):
            if isinstance(value, float) and value < TINY:
                continue  # 0 and 1e-12 are the same as an added term
            yield path, owner, option, value


def tried_before(subject: Subject) -> frozenset[tuple[str, str]]:
    """The options tried by subjects before this one."""
    every = whole()
    earlier = every[: every.index(subject)] if subject in every else []
    return frozenset().union(*map(tried_in, earlier))


@functools.cache
def tried_in(subject: Subject) -> frozenset[tuple[str, str]]:
    """The options with a number other than 0 of a subject."""
    return frozenset(key_of(owner, option) for _, owner, option, _ in numeric(subject.recipe))


@check(16, "model", examples=3, needs=decodes, checkpoint=True)
def logits_of_the_last_position(subject: Subject, rng: random.Random) -> float:
    """`last=True` gives the last position of the logits, and nothing else changes."""
    batch = draw(subject, rng, [rng.randint(1, 9)] * 2, source=[4, 4])
    whole = run(subject.model, batch)
    with torch.no_grad():
        last = outputs(subject.model(**batch.inputs, last=True))
    expect(last["logits"].shape[1] == 1, f"last=True gives {last['logits'].shape[1]} positions")
    worst = close(last["logits"], whole["logits"][:, -1:], "the last logits")
    return max(worst, close(last["hidden"], whole["hidden"], "hidden", 0.0, 0.0))

"""Items 1 and 2: the numbers are the oracle's, and files survive the round trip."""

from __future__ import annotations

import json
import random
import tempfile
from pathlib import Path

import torch

from anyformer.contract.check import LeftOut, check, pads, varied
from anyformer.contract.deviations import deviates
from anyformer.contract.diffusers import weights_in
from anyformer.contract.oracle import (
    Oracle,
    accepts,
    as_theirs,
    fresh,
    in_training,
    meet,
    oracle,
    reference,
    their_gradients,
)
from anyformer.contract.probe import Batch, close, draw, expect, run, slopes_agree
from anyformer.contract.subjects import Subject, apart, apart_from_tiny, hubs, of_page, subjects, unsaid
from anyformer.contract.tracing import aligned, over, trace
from anyformer.core import hyper, pages
from anyformer.hub import load, save
from anyformer.hub.tables import config as tables
from anyformer.hub.tables.config import ACTS
from anyformer.hub.tables.weights import Hub
from anyformer.parts.attention.masks import FAR, Mask
from anyformer.parts.ffn import ACTIVATIONS
from anyformer.parts.norms import RunningNorm
from anyformer.parts.series.decomposition import SeasonBlock
from anyformer.parts.series.distil import Distil
from anyformer.parts.sound.positions import NormedPositions

WIDE = ("position_embeddings.weights", "codevectors")  # in transformers float32 always
STEEP = (Distil, SeasonBlock, RunningNorm, NormedPositions)  # they multiply rounding, of entries that are nearly alike
LONG = 96  # tokens for a model without a limit: beyond the trained length of every stretched page
FEW = 20  # positions of a model of pairs, which cost the cube of the length


def compare(side: Oracle, batch: Batch, what: str) -> float:
    """The largest difference between ours and theirs over all outputs and hidden states, at real tokens."""
    theirs = side.run(batch)
    with torch.no_grad():
        ours = trace(side.ours, batch)
    expect(any(name in ours for name in theirs), f"{what}: the oracle returns nothing that ours does")
    pairs = aligned(ours, theirs, batch)
    worst = 0.0
    for name, expected in theirs.items():
        for i in range(len(batch)):
            actual, wanted = batch.real(over(name), ours[pairs[name]], i), batch.real(over(name), expected, i)
            worst = max(worst, close(actual, wanted, f"{what}: {name}, row {i}"))
    return worst


@check(1, "page")
def files_express_every_case(name: str) -> float:
    """Every hyperparameter is in a map and every case can be written: without a file there is no comparison."""
    if apart(name):
        raise LeftOut("transformers lacks the page; its ORACLE states the comparison instead")
    page, drawn = pages.page(name), [s for s in subjects(name) if not s.light]
    expressed = {f for hub in of_page(drawn[0]) for f in tables.hyperparameters(hub.config)}
    expressed |= {f for hub in of_page(drawn[0]) for fixed in hub.architectures.values() for f in fixed}
    unmapped = sorted(hyper.kinds(page.config).keys() - expressed)
    expect(not unmapped, f"{unmapped}: in no table of HUBS; no file can hold another value, so add them to `config=`")
    for subject in drawn:
        why = "; ".join(f"{hub}: {reason}" for hub, reason in unsaid(subject).items())
        expect(bool(hubs(subject)), f"{subject} cannot be compared with an oracle, no file can express it: {why}")
    return 0.0


@check(1, "files", light=True, checkpoint=True)
def parity(subject: Subject, hub: Hub | None) -> float:
    """Logits, every head and all hidden states are the oracle's."""
    batch = draw(subject, random.Random(1), [11, 11])
    return compare(oracle(subject, hub), batch, "parity")


@check(1, "files", light=True, later=varied)
def parity_of_gradients_in_training(subject: Subject, hub: Hub) -> float:
    """In training mode the gradient of every parameter is the oracle's."""
    side = oracle(subject, hub)
    ours, theirs = fresh(side.ours).train(), side.theirs
    batch = draw(subject, random.Random(2), [9, 9, 9])
    if any(subject.holds(kind) for kind in STEEP):
        side, ours, batch = side.doubled(), ours.double(), batch.to(torch.float64)
        theirs = side.theirs
    with in_training(theirs):
        theirs.zero_grad()
        expected, actual = side.named(side.call(batch)), trace(ours, batch)
        noise = torch.Generator().manual_seed(3)
        names = [n for n in expected if not n[-1].isdigit()]
        weights = {n: torch.randn(expected[n].shape, generator=noise) for n in names}
        sum((expected[n] * weights[n]).sum() for n in names).backward()  # type: ignore[union-attr]
        sum((actual[n] * weights[n]).sum() for n in names).backward()  # type: ignore[union-attr]
        worst = max(close(actual[n], expected[n], f"training: {n}") for n in names)
        wanted = their_gradients(side, hub)
    still = {n: torch.zeros_like(b) for n, b in ours.state_dict().items() if b.is_floating_point()}  # buffers: never
    mine = as_theirs(side, hub, still | {n: p.grad for n, p in ours.named_parameters() if p.grad is not None})
    wanted |= {n: g for n, g in mine.items() if n not in wanted and not g.any()}  # an expert without tokens: none is 0
    return max(worst, slopes_agree(mine, wanted, "training"))


@check(1, "files", examples=6, needs=pads, checkpoint=True)
def parity_with_padding(subject: Subject, hub: Hub | None, rng: random.Random) -> float:
    """With padding on either side, ours is the oracle's on the same batch, and the oracle's on each row alone."""
    side, where = oracle(subject, hub), rng.choice(("left", "right"))
    lengths = [rng.randint(1, 20) for _ in range(3)]
    batch = draw(subject, rng, lengths, where)
    theirs, worst = side.run(batch), 0.0
    with torch.no_grad():
        ours = trace(side.ours, batch)
        each = [side.run(batch.row(i)) for i in range(len(batch))]
        longest = lengths.index(max(lengths))  # alone: in the batch, padding can differ by intention
        row = batch.row(longest)
        pairs = aligned(trace(side.ours, row), each[longest], row)
    for i, alone in enumerate(each):
        for name, value in theirs.items():
            if not batch.has_rows(name):
                continue
            actual = batch.real(over(name), ours[pairs[name]], i)
            worst = max(worst, close(actual, alone[name][0], f"padding {where}, {name}, row {i} against it alone"))
            if deviates(subject, lengths, where, value) is None:
                wanted = batch.real(over(name), value, i)
                worst = max(worst, close(actual, wanted, f"padding {where}, {name}, row {i}"))
    return worst


@check(1, "files", checkpoint=True)
def parity_at_the_edges(subject: Subject, hub: Hub | None) -> float:
    """One token, the longest text, past the trained length, around a window; for images other sizes."""
    side, rng, worst = oracle(subject, hub), random.Random(4), 0.0
    if pads(subject):
        noise = torch.Generator().manual_seed(4)
        for size in side.ours.entrances()[0].front.sizes():
            example = side.ours.example(2, {"": size}, noise)
            worst = max(worst, compare(side, Batch(example), f"an input of the size {size}"))
        if pads(subject):
            return worst
    edges = [w for mask in subject.values(Mask) for d in mask.reach() if d < FAR for w in (d, d + 1, d + 2)]
    most = FEW if subject.outline.pairs and apart_from_tiny(subject) else LONG
    limit = most if subject.limit is None else subject.limit
    for length in sorted({1, 2, *edges, min(limit, most)}):
        if 0 < length <= limit:
            batch = draw(subject, rng, [length])
            for inputs in (batch, *([batch.plain()] if "global_attention_mask" in batch.inputs else [])):
                worst = max(worst, compare(side, inputs, f"{length} tokens"))
    return worst


@check(1, "page", examples=6, oracle=True)
def parity_of_random_hyperparameters(name: str, rng: random.Random) -> float:
    """Hyperparameters drawn together from the values of all cases give the oracle's numbers, and files survive."""
    subject = chance(name, rng)
    if subject is None:
        raise LeftOut("no published file can express its hyperparameters" if apart(name) else "no draw is valid")
    worst, known = 0.0, [hub for hub in hubs(subject) if accepts(subject, hub)]
    if not known:
        raise LeftOut("their config class refuses the draw")
    for hub in known:
        side = meet(subject, hub)
        worst = max(worst, compare(side, draw(subject, rng, [9, 9]), f"{subject.config}, {hub.name}"))
        with tempfile.TemporaryDirectory() as folder:
            save(side.ours, folder)
            identical(side.folder, Path(folder))
    return worst


def chance(name: str, rng: random.Random) -> Subject | None:
    """A subject with random, compatible hyperparameters, or None if a few draws gave none."""
    page, known = pages.page(name), [s.config for s in subjects(name)]
    drawn = [hyper.leaves(config) for config in known]
    pools = {name: list(dict.fromkeys(leaves[name] for leaves in drawn if name in leaves)) for name in drawn[0]}
    for _ in range(5):
        config = page.at("tiny", **{name: rng.choice(pool) for name, pool in pools.items()})
        try:
            subject = Subject(f"{name}/{config}", page.recipe(config), name, config)
            run(subject.model, draw(subject, rng, [3, 3]))
        except ValueError:
            continue  # heads that do not divide the width, factors for another head width
        if hubs(subject):
            return subject
    return None


@check(1, "parts", oracle=True)
def activations_by_every_name() -> float:
    """Every name of an activation in config files means the same function as in `transformers`."""
    from transformers.activations import ACT2FN

    x = torch.linspace(-8, 8, 1001)
    pairs = {theirs: (ACTIVATIONS[ours](x), ACT2FN[theirs](x)) for theirs, ours in ACTS.items()}
    return max(close(actual, expected, f"activation {name!r}") for name, (actual, expected) in pairs.items())


@check(2, "files", light=True)
def round_trip(subject: Subject, hub: Hub) -> float:
    """Their files to ours and back have the same names, bits and config; theirs loads ours with the same numbers."""
    side = oracle(subject, hub)
    with tempfile.TemporaryDirectory() as folder:
        save(side.ours, folder)
        identical(side.folder, Path(folder))
        before, after = (json.loads((Path(f) / "config.json").read_text()) for f in (side.folder, folder))
        differs = {k for k in {*before, *after} if before.get(k, "absent") != after.get(k, "absent")}
        expect(not differs, f"the config came back changed in {sorted(differs)}")
        return 0.0 if subject.light else reopened(side, subject, folder)  # they read equal files alike


@check(2, "files", light=True, later=apart_from_tiny)
def transformers_opens_our_files(subject: Subject, hub: Hub) -> float:
    """A model that was built here, not loaded, opens in `transformers` with the same numbers."""
    side = oracle(subject, hub)
    model = subject.recipe.build()
    model.load_state_dict(side.ours.state_dict())
    model.page, model.config, model.origin = subject.page, subject.config, {"hub": hub.name}
    with tempfile.TemporaryDirectory() as folder:
        expect(save(model, folder) in (hub.name, *hub.architectures), f"it was not written as {hub.name}")
        identical(side.folder, Path(folder))
        return reopened(side, subject, folder)


def identical(one: Path, other: Path) -> None:
    """Raises unless the weights in both folders have the same names, shapes, types and bits."""
    a, b = weights_in(one), weights_in(other)
    expect(set(a.names()) == set(b.names()), f"tensors only on one side: {sorted(set(a.names()) ^ set(b.names()))}")
    for name in a.names():
        same = a.dtype(name) == b.dtype(name) and torch.equal(a.get(name), b.get(name))
        expect(same, f"tensor {name!r} came back changed")


def reopened(side: Oracle, subject: Subject, folder: str) -> float:
    """Compares theirs, loaded from our files, with theirs as before: their weights are `identical`, but products of
    the same numbers round differently on some processors where they lie otherwise in memory."""
    model, info = type(side.theirs).from_pretrained(folder, output_loading_info=True)
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        expect(not info[kind], f"transformers reports {kind}: {sorted(map(str, info[kind]))}")
    batch = draw(subject, random.Random(5), [7, 7])
    there = Oracle(reference(model).eval(), side.folder, side.ours)
    before, after = side.run(batch), there.run(batch)
    expect(before.keys() == after.keys(), "transformers returns other outputs")
    return max(close(after[n], before[n], f"reopened: {n}") for n in before)


@check(2, "model", checkpoint=True, later=apart_from_tiny)
def save_and_load(subject: Subject) -> float:
    """A saved and loaded model has the same bits and the same outputs; saved again, its files have the same bytes."""
    with tempfile.TemporaryDirectory() as folder:
        one, two = Path(folder, "one"), Path(folder, "two")
        save(subject.model, one, max_shard_bytes=1_000_000_000 if subject.path else 30_000)
        again = load(one)
        expect(again.recipe == subject.recipe, "the recipe came back changed")
        before, after = subject.model.state_dict(), again.state_dict()
        expect(before.keys() == after.keys(), f"tensors only on one side: {sorted(before.keys() ^ after.keys())}")
        for name in before:
            expect(torch.equal(before[name], after[name]), f"{name} came back changed")
        save(again, two, max_shard_bytes=1_000_000_000 if subject.path else 30_000)
        expect(contents(one) == contents(two), "save, load, save: the files differ")
        batch = draw(subject, random.Random(6), [5, 5])
        x, y = run(subject.model, batch), run(again, batch)
        return max(close(y[n], x[n], f"loaded again: {n}") for n in x)


@check(2, "files", later=apart_from_tiny)
def stored_dtype_is_reported(subject: Subject, hub: Hub) -> float:
    """In half precision and back, the config has the type of the tensors, and both sides load that, unrounded."""
    model = fresh(oracle(subject, hub).ours)
    if hub.format == "diffusers":
        raise LeftOut("files of diffusers name no type, and it loads float32 from all of them")
    for dtype in (torch.bfloat16, torch.float32):
        model.to(dtype)
        with tempfile.TemporaryDirectory() as folder:
            save(model, folder)
            config = json.loads((Path(folder) / "config.json").read_text())
            names = {config[k] for k in ("dtype", "torch_dtype") if k in config}
            expect(names == {str(dtype).removeprefix("torch.")}, f"the config names {names}, the tensors are {dtype}")
            again, theirs = load(folder), type(oracle(subject, hub).theirs).from_pretrained(folder)
            expect({p.dtype for p in again.parameters()} == {dtype}, f"ours loaded another dtype than {dtype}")
            made = {p.dtype for n, p in theirs.named_parameters() if not any(name in n for name in WIDE)}
            expect(made == {dtype}, f"transformers loaded another dtype than {dtype}")
    return 0.0


def contents(folder: Path) -> dict[str, bytes]:
    """The content of all files in a folder and its subfolders, by path."""
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}

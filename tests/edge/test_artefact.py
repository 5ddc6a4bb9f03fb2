"""Files for ONNX Runtime give the model's numbers at any length, in few bits too; layers alone give the layers'."""

from __future__ import annotations

import random
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from anyformer.compress import few
from anyformer.core import pages
from anyformer.edge import artefact, device, matrices
from anyformer.edge.shared import GROUP, Shared, sliced
from anyformer.edge.space import Choice, space
from anyformer.edge.targets import Onnx
from anyformer.edge.targets.onnx import in_8_bits, stack
from anyformer.parts.quantised import Grid, GridTable
from tests.edge.test_space import SMALL

BASE = pages.recipe("bert", "tiny", task="classify", classes=3)
CHOICE: Choice = {
    "dim": 32, "depth": 2, "vocab": 96, "pool": "additive", "bits": 4,
    "mixer.0": "own", "heads.0": 4, "kv_heads.0": 1, "hidden.0": 2, "mixer.1": "convolution", "hidden.1": 1,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def inputs(rows: int, length: int) -> dict[str, torch.Tensor]:
    ids = torch.randint(0, 96, (rows, length), generator=torch.Generator().manual_seed(length))
    mask = torch.ones(rows, length, dtype=torch.long)
    mask[-1, (length + 1) // 2 :] = 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("bits", [8, 4])
def test_a_file_gives_the_numbers_of_the_model_in_few_bits(bits: int, tmp_path: Path) -> None:
    made = space(BASE, 40, SMALL)
    model = pages.build(made.recipe(CHOICE), seed=0).eval()
    full = model(**inputs(2, 7)).logits
    few.quantise(model, few.Work("rtn", GROUP, few.plan(model, bits, GROUP)))
    file = tmp_path / "model.onnx"
    artefact.write(model, file, facts={"classes": ["a"]})
    assert artefact.difference(artefact.opened(file), model, [inputs(1, 1), inputs(2, 7), inputs(3, 33)]) < 1e-5
    small = model(**inputs(2, 7)).logits
    assert float((small - full).abs().max()) > 1e-5  # it is in few bits
    weights = sum(t.nbytes for t in model.state_dict().values())
    assert weights < file.stat().st_size < weights + 40_000
    import onnx

    graph = onnx.load(file).graph
    widest = max(
        n.dims[0] * n.dims[1] for n in graph.initializer if len(n.dims) == 2 and n.data_type == onnx.TensorProto.FLOAT
    )
    assert widest <= 40 * 32  # the table of positions; every matrix is in few bits
    (p50, p95, memory), *_ = artefact.measured(file, artefact.example(model, 16), 1, processes=1, seconds=0.05)
    assert 0 < p50 <= p95 and memory > 0


@pytest.mark.parametrize("bits", [8, 4])
def test_matrices_in_few_bits_are_multiplied_in_whole_numbers(bits: int, tmp_path: Path) -> None:
    """Each once; what q, k and v read is rounded once; seven bits, so that two products stay below 16 bits. Those of 4
    bits are 4 bits in the file."""
    made = space(BASE, 40, SMALL)
    model = pages.build(made.recipe(CHOICE), seed=0).eval()
    few.quantise(model, few.Work("rtn", GROUP, few.plan(model, bits, GROUP)))
    file, plain = tmp_path / "model.onnx", tmp_path / "plain.onnx"
    count = artefact.write(model, file, whole=True)
    assert artefact.write(model, plain) == 0
    import onnx

    graph = onnx.load(file).graph
    kinds = [node.op_type for node in graph.node]
    linear = sum(isinstance(m, Grid) and not isinstance(m, GridTable) for m in model.modules())
    assert kinds.count("Gemm") == 1  # the classes, of one vector a text
    assert kinds.count("MatMulInteger") == count == linear - 1
    assert kinds.count("DynamicQuantizeLinear") == count - 2
    whole = [onnx.numpy_helper.to_array(t) for t in graph.initializer if t.name.endswith(".q") and t.data_type == 3]
    assert len(whole) == (count if bits == 8 else 0) and all(abs(w.astype(int)).max() == 63 for w in whole)
    more = file.stat().st_size - plain.stat().st_size
    assert more < 0 if bits == 8 else abs(more / count / matrices.WHOLE_NODES - 1) < 0.1
    off = artefact.difference(artefact.opened(file), model, [inputs(1, 1), inputs(2, 7), inputs(3, 33)])
    assert 1e-6 < off < 0.02


def test_a_table_has_rows_for_whole_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANYFORMER_CACHE", str(tmp_path))
    made = space(BASE, 12, {**SMALL, "dim": [16], "mixer": ["own"], "kv_heads": [0], "heads": [2], "pool": ["own"]})
    ran: dict[str, object] = {}
    monkeypatch.setattr(device, "timed", lambda runs, *_: ran.update(runs) or {name: 1.0 for name in runs})
    plain, table = device.Table(made, Onnx(tokens=12)), device.Table(made, Onnx(tokens=12, products="int8"))
    choice = next(made.uniform())
    choice = {**choice, "bits": 8}
    plain.measure([choice])
    known = set(ran)
    table.measure([choice])
    every = set(ran)
    table.measure([{**choice, "bits": 4}])
    assert set(ran) == every > known  # a matrix of 4 bits is whole numbers of as many bits, once it is loaded
    assert table.target.whole and not plain.target.whole
    assert table.graph(choice) > plain.graph(choice)  # more nodes
    layers = stack(
        model := pages.build(made.recipe(choice), seed=0).eval(), row := artefact.example(model, 12), 1,
        artefact.grids_of(in_8_bits(model)),
    )  # fmt: skip
    seen: list[torch.Tensor] = []
    model.blocks[0].register_forward_hook(lambda _, args, out: seen.append(out))
    model(**row)
    off = float((torch.from_numpy(layers[0][0]()[0]) - seen[0]).abs().max())
    assert 1e-6 < off < 0.05


def test_a_layer_alone_gives_the_numbers_of_the_layer() -> None:
    made = space(BASE, 12, SMALL)
    model = pages.build(made.recipe({**CHOICE, "mixer.0": "window"}), seed=0).eval()
    seen: list[torch.Tensor] = []
    hooks = [b.register_forward_hook(lambda _, args, out: seen.append(out)) for b in model.blocks]
    row = artefact.example(model, 12)
    model(**row)
    for hook in hooks:
        hook.remove()
    layers = stack(model, row, 1)
    for (run, size), wanted in zip(layers, seen, strict=True):
        assert torch.allclose(torch.from_numpy(run()[0]), wanted, atol=1e-5) and 500 < size < 20_000


def test_a_table_is_a_sum_is_kept_and_is_of_this_machine_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANYFORMER_CACHE", str(tmp_path))
    made = space(
        BASE,
        12,
        {**SMALL, "dim": [16], "mixer": ["own", "convolution"], "kv_heads": [0], "heads": [2], "pool": ["own"]},
    )
    monkeypatch.setattr(device, "timed", lambda runs, *_: {name: len(name) + i * 1.0 for i, name in enumerate(runs)})
    table = device.Table(made, Onnx(tokens=12))
    table.fill()
    rows = dict(table.rows)
    noise = random.Random(0)
    for _ in range(10):
        choice = made.drawn(noise)
        total = rows[table._name({"dim": choice["dim"], "depth": 0, "pool": "own"})][0]
        for i in range(choice["depth"]):
            parts = device._layers(made, choice, i)
            total += sum(sign * rows[table._name(p)][0] for sign, p in zip((1, -1, 1), parts, strict=True))
        assert table.milliseconds(choice) == pytest.approx(total)
    assert table.rows == rows and device.Table(made, Onnx(tokens=12)).rows == rows  # all was known; and read again
    assert device.Table(made, Onnx(threads=2, tokens=12)).rows == {}  # times of other conditions are not used
    (tmp_path / device.FILE).write_text("[", encoding="utf-8")
    assert device.Table(made, Onnx(tokens=12)).rows == {}


def test_a_smaller_model_reads_the_first_rows_of_each_part() -> None:
    wide = torch.arange(2 * 32.0)[:, None].expand(64, 32)
    cut = sliced(wide, torch.Size((32, 16)), 32, 16, parts=True)
    assert cut[:, 0].tolist() == [*range(16), *range(32, 48)]
    assert sliced(wide, torch.Size((32, 16)), 32, 16, parts=False)[:, 0].tolist() == [*range(32)]


def test_shared_weights_are_those_of_a_model_alone() -> None:
    made, noise = space(BASE, 12, SMALL), random.Random(1)
    weights, row = Shared(made).eval(), inputs(2, 9)
    row["input_ids"] %= 64
    for _ in range(4):
        choice = made.drawn(noise)
        alone = weights.standing(choice).eval()
        assert torch.equal(alone(**row).logits, weights.run(choice)(**row))
    smallest = made.end(False, noise)
    with torch.enable_grad():
        weights.run(smallest)(**row).sum().backward()
    grad = weights._weight("embed.tokens.weight", smallest).grad
    assert grad is not None and grad[:64, :16].abs().sum() > 0 and not grad[64:].any() and not grad[:, 16:].any()


def test_a_model_that_cannot_be_exported_is_named(tmp_path: Path) -> None:
    class Reader(torch.nn.Identity):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * float(x.sum().item() > 0)

    model = pages.build(BASE, seed=0).eval()
    model.blocks[0].ffn.act = Reader()
    with pytest.raises(ValueError, match="Encoder cannot be exported with open sizes"):
        artefact.write(model, tmp_path / "model.onnx")
    assert not any(tmp_path.iterdir())


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    model = pages.build(space(BASE, 12, SMALL).recipe(CHOICE), seed=0).eval()
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"could not be written; the previous file is unchanged.*model\.onnx"):
            artefact.write(model, tmp_path / "model.onnx")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert not any(tmp_path.iterdir())

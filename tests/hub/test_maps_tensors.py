"""What maps of tensors can say beside one of theirs for one of ours: whole buffers, several on a side, older names."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import anyformer as af
from anyformer.hub import fill, load, save
from anyformer.hub.tables.several import Copies, Join, Stack, Unstack, WeightNorm
from anyformer.hub.tables.weights import Link, row
from tests.hub import statue

WEIGHTS = "model.safetensors"


@pytest.fixture(autouse=True)
def _page():
    with statue.page(statue.HF):
        yield


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save(statue.made(), tmp_path)
    return tmp_path


def file_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The tensors of their file, written without the map."""
    ours = model.state_dict()
    table = ours["embed.tokens.weight"]
    theirs = {"words.weight_g": table.norm(dim=1, keepdim=True), "words.weight_v": table}
    for last in ("weight", "bias"):
        theirs[f"last_norm.{last}"] = ours[f"norm.{last}"]
    for i in range(3):
        here, ffn = f"layers.{i}", f"blocks.{i}.ffn"
        for last in ("weight", "bias", "running_mean", "running_var"):
            theirs[f"{here}.batch_norm.{last}"] = ours[f"blocks.{i}.norm.ffn.{last}"]
        for last in ("weight", "bias"):
            theirs[f"{here}.classes.{last}"] = ours[f"heads.classes.proj.{last}"]
            joined = ours[f"{ffn}.joined.{last}"]
            theirs[f"{here}.ffn.one.{last}"], theirs[f"{here}.ffn.two.{last}"] = joined[:1], joined[1:]
            theirs[f"{here}.ffn.all.{last}"] = torch.stack([ours[f"{ffn}.experts.{e}.{last}"] for e in range(3)])
        for e in range(3):
            theirs[f"{here}.ffn.expert.{e}.w"] = ours[f"{ffn}.stacked"][e]
    return {name: tensor.clone() for name, tensor in theirs.items()}


def test_a_file_has_all_of_theirs_and_is_the_model(folder: Path) -> None:
    model, stored = statue.made(), load_file(folder / WEIGHTS)
    expected = file_of(model)
    assert stored.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(stored[name], tensor)
    again = load(folder)
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    ids = torch.tensor([[1, 2, 3]])
    assert torch.equal(again(ids).logits, model(ids).logits)
    assert {line.status for line in again.ledger.tensors} == {"used"}
    assert {line.name for line in again.ledger.tensors} == stored.keys()


def test_each_tensor_that_is_missing_is_named_and_nothing_else_is(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    for name in tensors:
        save_file({k: v for k, v in tensors.items() if k != name}, folder / WEIGHTS)
        with pytest.raises(ValueError, match=rf"1 tensors are missing in the file: {re.escape(name)} \(our ") as caught:
            load(folder)
        assert "no place" not in str(caught.value)


def test_of_many_tensors_that_are_missing_five_are_named(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    last = list(tensors)[-1]
    save_file({last: tensors[last]}, folder / WEIGHTS)
    with pytest.raises(ValueError, match=f"{len(tensors) - 1} tensors are missing in the file: ") as caught:
        load(folder)
    assert str(caught.value).count(" (our ") == fill.NAMED < len(tensors) - 1


@pytest.mark.parametrize("wrong", ["a row more", "an axis more", "a scalar"])
def test_each_tensor_of_another_shape_is_named(folder: Path, wrong: str) -> None:
    tensors = load_file(folder / WEIGHTS)
    for name, value in tensors.items():
        other = {
            "a row more": torch.cat((value, value[:1])),
            "an axis more": value[None],
            "a scalar": torch.tensor(1.0),
        }
        save_file(tensors | {name: other[wrong]}, folder / WEIGHTS)
        with pytest.raises(ValueError, match=re.escape(repr(name))):
            load(folder)


@pytest.mark.parametrize("i", [0, 1, 2])
@pytest.mark.parametrize("last", ["weight", "bias"])
def test_copies_must_be_equal(folder: Path, i: int, last: str) -> None:
    tensors = load_file(folder / WEIGHTS)
    tensors[f"layers.{i}.classes.{last}"] += 1
    save_file(tensors, folder / WEIGHTS)
    named = rf"tensor 'layers.{max(i, 1)}.classes.{last}' .*: it is one of 3 copies of one weight, and differs"
    with pytest.raises(ValueError, match=named):
        load(folder)


@pytest.mark.parametrize("extra", ["layers.3.classes.weight", "layers.0.bn.running_mode", "words.weight_h", "blocks"])
def test_a_tensor_without_a_place_is_named(folder: Path, extra: str) -> None:
    save_file(load_file(folder / WEIGHTS) | {extra: torch.zeros(2)}, folder / WEIGHTS)
    with pytest.raises(ValueError, match=f"1 tensors of the file are not in the model: {extra}"):
        load(folder)


def test_a_direction_without_length_is_refused(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    tensors["words.weight_v"][3] = 0
    save_file(tensors, folder / WEIGHTS)
    with pytest.raises(ValueError, match=r"'words\.weight_v' .*: one of its directions is all zeros"):
        load(folder)


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_weight_norm_is_that_of_torch(axis: int) -> None:
    conv = torch.nn.utils.parametrizations.weight_norm(torch.nn.Conv1d(4, 6, 3), dim=axis % 3)
    g, v = conv.parametrizations.weight.original0.detach() * 1.5, conv.parametrizations.weight.original1.detach()
    [w] = WeightNorm(axis).read([g, v], [v.shape])
    torch.testing.assert_close(w, torch._weight_norm(v, g, axis % 3))
    assert torch.equal(WeightNorm(axis).read(WeightNorm(axis).write([w]), [w.shape])[0], w)  # exact, once it is ours


OPS = [(Join((2, 3)), 1, (5, 4)), (Stack(), 1, (2, 5, 4)), (Unstack(), 2, (5, 4)), (Copies(3), 1, (5, 4))]


@pytest.mark.parametrize(("op", "count", "shape"), OPS, ids=lambda x: type(x).__name__)
def test_what_is_written_is_read_as_it_was(op, count: int, shape: tuple[int, ...]) -> None:
    tensors = [torch.randn(shape) for _ in range(count)]
    link = Link(tuple("abc"[: len(op.write(tensors))]), tuple("xyz"[:count]), (op,))
    file = link.write(dict(zip("xyz", tensors, strict=False)))
    again = link.read([file[name] for name in link.theirs], [shape] * count)
    assert all(torch.equal(a, b) for a, b in zip(again, tensors, strict=True))


# --------------------------------------------------------------------------------------------------------- older names


OLD = {"words.weight_g": "words.original0", "words.weight_v": "words.original1"} | {
    f"layers.{i}.batch_norm.{last}": f"layers.{i}.bn.{last}"
    for i in range(3)
    for last in ("weight", "bias", "running_mean", "running_var")
}


def test_older_names_are_written_back_as_they_came_and_new_models_get_the_new_ones(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    aged = {OLD.get(name, name): tensor for name, tensor in tensors.items()}
    assert not any(".bn." in name or "original" in name for name in tensors) and len(aged.keys() - tensors) == len(OLD)
    save_file(aged, folder / WEIGHTS)
    model = load(folder)
    assert model.origin["names"] == OLD
    save(model, folder / "again")
    back = load_file(folder / "again" / WEIGHTS)
    assert back.keys() == aged.keys()
    assert torch.equal(
        load(folder / "again").state_dict()["embed.tokens.weight"], model.state_dict()["embed.tokens.weight"]
    )


@pytest.mark.parametrize("name", ["words.weight_v", "layers.1.batch_norm.running_var"])
def test_a_tensor_under_both_names_is_refused(folder: Path, name: str) -> None:
    tensors = load_file(folder / WEIGHTS)
    pairs = {
        old: tensors[new].clone() for new, old in OLD.items() if new == name or ("words" in new and "words" in name)
    }
    save_file(tensors | pairs, folder / WEIGHTS)
    with pytest.raises(ValueError, match="and, under its older name, '"):
        load(folder)


def test_half_a_pair_under_its_older_name_is_no_pair(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    tensors["words.original0"] = tensors.pop("words.weight_g")
    save_file(tensors, folder / WEIGHTS)
    with pytest.raises(
        ValueError, match=r"missing in the file: words.weight_g .*are not in the model: words.original0"
    ):
        load(folder)


def test_a_row_whose_older_names_are_too_few_is_refused() -> None:
    with pytest.raises(ValueError, match="each must be 2 names"):
        row(("g", "v"), "w", also="old")


# -------------------------------------------------------------------------------------------------- counters of batches


def test_counters_of_batches_are_kept_with_their_reason(folder: Path) -> None:
    counts = {f"layers.{i}.batch_norm.num_batches_tracked": torch.tensor(7 + i) for i in (0, 2)}
    save_file(load_file(folder / WEIGHTS) | counts, folder / WEIGHTS)
    model = load(folder)
    lines = {line.name: line for line in model.ledger.tensors if line.status == "ignored"}
    assert lines.keys() == counts.keys() and all("batches" in line.detail for line in lines.values())
    save(model, folder / "again")
    back = load_file(folder / "again" / WEIGHTS)
    assert {n: (t.dtype, int(t)) for n, t in back.items() if "tracked" in n} == {
        n: (torch.int64, int(t)) for n, t in counts.items()
    }
    assert "num_batches_tracked" not in str(list(load_file(folder / WEIGHTS).keys() - counts))


@pytest.mark.parametrize("value", [torch.tensor([1, 2]), torch.tensor(0.5), torch.tensor(True)], ids=str)
def test_a_counter_that_counts_nothing_is_refused(folder: Path, value: torch.Tensor) -> None:
    name = "layers.0.batch_norm.num_batches_tracked"
    save_file(load_file(folder / WEIGHTS) | {name: value}, folder / WEIGHTS)
    with pytest.raises(ValueError, match=name):
        load(folder)


def test_a_counter_beside_no_statistics_has_no_place(folder: Path) -> None:
    save_file(load_file(folder / WEIGHTS) | {"last_norm.num_batches_tracked": torch.tensor(1)}, folder / WEIGHTS)
    with pytest.raises(ValueError, match=r"are not in the model: last_norm\.num_batches_tracked"):
        load(folder)


# --------------------------------------------------------------------------------------------------------- kept parts


def test_a_kept_part_stands_at_its_own_paths_and_is_never_trained(folder: Path) -> None:
    model = load(folder)
    paths = model.state_dict().keys()
    assert {p.removeprefix("blocks.2.") for p in paths if p.startswith("blocks.2.")} == {
        p.removeprefix("blocks.0.") for p in paths if p.startswith("blocks.0.")
    }
    assert not any(name.startswith(("blocks.2.", "norm.")) for name, _ in model.named_parameters())
    assert any(name.startswith("blocks.1.") for name, _ in model.named_parameters())
    ids, before = torch.tensor([[1, 2, 3]]), {n: t.clone() for n, t in model.state_dict().items()}
    model.train()
    torch.optim.SGD(model.parameters(), 0.1, weight_decay=0.1).zero_grad()
    model(ids).logits.sum().backward()
    torch.optim.SGD(model.parameters(), 0.1, weight_decay=0.1).step()
    kept = ("blocks.2.", "norm.")
    changed = {n for n, t in model.state_dict().items() if not torch.equal(t, before[n])}
    assert changed and not any(n.startswith(kept) for n in changed)


def test_nothing_reads_a_kept_part(folder: Path) -> None:
    model, ids = load(folder), torch.tensor([[1, 2, 3]])
    expected = model(ids).logits
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.startswith(("blocks.2.", "norm.")):
                tensor.fill_(float("nan"))
    assert torch.equal(model(ids).logits, expected)


def test_a_recipe_with_the_former_name_of_a_kept_layer_still_builds() -> None:
    text = json.dumps(af.recipe("bigbird", task="masked").to_json())
    former = text.replace('{"part": "Kept", "held": null}', '{"part": "Unread"}')
    assert former != text and af.Recipe.from_json(json.loads(former)) == af.recipe("bigbird", task="masked")

"""CLIP beyond the contract: old files, the end token, its loss, training, and what is asked of it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import anyformer as af
from anyformer.generate import classify, embed
from anyformer.hub.load import outline
from anyformer.hub.processors import ImageProcessor
from anyformer.hub.text.tokenizer import Tokenizer
from anyformer.models.clip import CLIP
from anyformer.parts import At
from anyformer.skeletons.base import Output
from anyformer.skeletons.dual_tower import HOTTEST, DualTower
from anyformer.train import Settings, finetune, fit, train
from anyformer.train.objectives import Matching
from anyformer.train.tasks import registry

CONFIGS = Path(__file__).parents[3] / "shared/data/configs/clip"
TEXT = {"hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 30,
        "max_position_embeddings": 12, "eos_token_id": 5}  # fmt: skip
VISION = {"hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 8,
          "patch_size": 4}  # fmt: skip


def published(folder, **changes):
    """Their tiny model in a folder."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    text = {**TEXT, **changes}
    config = transformers.CLIPConfig(text_config=text, vision_config=VISION, projection_dim=8)
    theirs = transformers.CLIPModel(config).eval()
    theirs.save_pretrained(folder)
    return theirs


def batch(rows=4):
    noise = torch.Generator().manual_seed(0)
    ids = torch.randint(6, 30, (rows, 7), generator=noise)
    ids[:, -1] = 5
    return {"input_ids": ids, "pixel_values": torch.randn(rows, 3, 8, 8, generator=noise)}


def edit(folder, change):
    said = json.loads((folder / "config.json").read_text())
    change(said)
    (folder / "config.json").write_text(json.dumps(said))


# ------------------------------------------------------------------------------------------------ files


def test_old_files_say_the_text_config_twice(tmp_path):
    theirs = published(tmp_path)
    edit(tmp_path, lambda said: said.update(text_config_dict=dict(TEXT), vision_config_dict=None))
    ours = af.load(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(ours(**batch()).logits, theirs(**batch()).logits_per_image)
    ours.save(tmp_path / "again")
    again = json.loads((tmp_path / "again/config.json").read_text())
    assert again["text_config_dict"] == TEXT and again["vision_config_dict"] is None
    edit(tmp_path, lambda said: said["text_config_dict"].update(num_attention_heads=4))
    with pytest.raises(ValueError, match="'text_config' and 'text_config_dict' describe two models"):
        af.load(tmp_path)


def test_an_end_of_2_means_the_largest_id_and_is_kept(tmp_path):
    theirs, given = published(tmp_path, eos_token_id=2), batch()
    ours = af.load(tmp_path)
    assert ours.config.text.end is None
    given["input_ids"][:, 3] = torch.tensor([29, 29, 28, 27])  # the largest of its row stands inside
    with torch.no_grad():
        torch.testing.assert_close(ours(**given).logits, theirs(**given).logits_per_image)
    ours.save(tmp_path / "again")
    assert json.loads((tmp_path / "again/config.json").read_text())["text_config"]["eos_token_id"] == 2
    with pytest.raises(ValueError, match="end=2 cannot be written"):
        made = af.build("clip", "tiny", overrides={"text.end": 2})
        from anyformer.hub.tables import config as tables

        tables.write(af.page("clip").module.HUBS[0].config, made.config, {}, {})


def test_numbers_of_places_in_old_files_carry_nothing(tmp_path):
    from safetensors.torch import load_file, save_file

    published(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["text_model.embeddings.position_ids"] = torch.arange(12)[None]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    fate = {line.name: line.status for line in af.load(tmp_path).ledger.tensors}
    assert fate["text_model.embeddings.position_ids"] == "ignored"


@pytest.mark.parametrize(("value", "told"), [([1, 2], "eos_token_id"), ("a", "eos_token_id"), (None, "eos_token_id")])
def test_an_end_that_is_none(value, told, tmp_path):
    published(tmp_path)
    edit(tmp_path, lambda said: said["text_config"].update(eos_token_id=value))
    if value is None:  # as absent: the class's own
        assert af.load(tmp_path).config.text.end == 49407
        return
    with pytest.raises(ValueError, match=told):
        af.load(tmp_path)


@pytest.mark.skipif(not CONFIGS.is_dir(), reason="the published config files lie beside the project's own checkout")
def test_published_configs_are_read():
    model = outline(CONFIGS / "clip-vit-base-patch16.config.json")
    assert sum(p.numel() for p in model.parameters()) == af.page("clip").module.PARAMETERS["b16"]
    assert model.config == CLIP(image=af.page("clip").at("b16").image, text=model.config.text)
    assert model.config.text.end is None  # it says 2


def test_another_image_size(tmp_path):
    theirs = published(tmp_path)
    larger = af.load(tmp_path, image={"image": 16})
    pixels = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        found = larger.towers["image"](pixel_values=pixels).logits
        wanted = theirs.get_image_features(pixels, interpolate_pos_encoding=True)
    wanted = wanted if isinstance(wanted, torch.Tensor) else wanted.pooler_output
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------------------------ the end token


def pooled(ids, mask=None, end=5):
    model = af.build("clip", "tiny", seed=0, overrides={"image": None, "text.end": end}).eval()
    with torch.no_grad():
        return model(ids, mask).pooled, model(ids, mask).hidden


def test_the_vector_is_that_of_the_first_real_end_token():
    ids = torch.tensor([[7, 5, 8, 5, 9], [5, 7, 8, 9, 5]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])  # the first 5 of the second row is padding
    vector, hidden = pooled(ids, mask)
    torch.testing.assert_close(vector, torch.stack((hidden[0, 1], hidden[1, 4])))
    largest, hidden = pooled(torch.tensor([[7, 50, 8], [90, 7, 8]]), torch.tensor([[1, 1, 1], [0, 1, 1]]), None)
    torch.testing.assert_close(largest, torch.stack((hidden[0, 1], hidden[1, 2])))


def test_a_text_without_an_end_is_named():
    with pytest.raises(ValueError, match=r"row 1 of input_ids has no end token \(5\)"):
        pooled(torch.tensor([[7, 5], [7, 8]]))
    with pytest.raises(ValueError, match=r"row 0 .* no end token"):
        pooled(torch.tensor([[5, 8]]), torch.tensor([[0, 1]]))
    vectors, _ = pooled(torch.tensor([[5, 8], [7, 5]]), torch.tensor([[0, 0], [1, 1]]))  # nothing is asked of no text
    assert vectors.isfinite().all()


def test_at_needs_ids():
    vit = af.recipe("vit", "tiny").but({"pool": At.of(end=1)}).build()
    with pytest.raises(ValueError, match="At reads TokenIds, which Tokens leaves in the flow"):
        vit(pixel_values=torch.randn(1, 3, 16, 16))


# ------------------------------------------------------------------------------------------------ the loss


def test_the_loss_is_the_published_one(tmp_path):
    theirs, given = published(tmp_path), batch()
    ours = af.load(tmp_path)
    wanted = theirs(**given, return_loss=True).loss
    found = Matching()(ours(**given), torch.arange(4), 4)
    torch.testing.assert_close(found, wanted)
    found.backward()
    wanted.backward()
    torch.testing.assert_close(ours.scale.grad, theirs.logit_scale.grad)
    grad = ours.towers["image"].embed.project.weight.grad
    torch.testing.assert_close(grad, theirs.vision_model.embeddings.patch_embedding.weight.grad, rtol=1e-4, atol=1e-6)


def towers(rows=slice(None)):
    noise = torch.Generator().manual_seed(0)
    image, text = torch.nn.functional.normalize(torch.randn(2, 5, 6, generator=noise), dim=-1).unbind()
    made = {"image": image[rows].clone(), "text": text[rows].clone(), "scale": torch.tensor(7.0)}
    return {name: value.requires_grad_() for name, value in made.items()}


def test_rows_of_one_text_are_no_wrong_answers_and_some_only_serve_as_one():
    heads, labels = towers(), torch.tensor([3, 8, 3, -100, 9])
    scores = 7.0 * heads["image"] @ heads["text"].mT
    total = 0.0
    for table in (scores, scores.mT):
        for row in (0, 1, 2, 4):
            others = [c for c in range(5) if c == row or labels[c] != labels[row]]
            total = total - table[row, others].log_softmax(0)[others.index(row)]
    torch.testing.assert_close(Matching()(Output(heads=heads), labels, 4), total / 8)
    guess = np.log([4, 5, 4, 5]).sum()
    assert Matching().guess(labels) == pytest.approx(guess) and int(Matching().counted(labels)) == 4


def one_of_two(rank, folder):
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    rows = slice(0, 3) if rank == 0 else slice(3, 5)
    heads = towers(rows)
    loss = Matching()(Output(heads=heads), torch.tensor([3, 8, 3, -100, 9])[rows], 4)
    loss.backward()
    torch.save((loss.detach(), [heads[n].grad for n in ("image", "text", "scale")]), f"{folder}/{rank}.pt")
    dist.barrier()  # neither ends while the other still speaks to it
    dist.destroy_process_group()


def test_one_process_and_two_agree(tmp_path):
    torch.multiprocessing.start_processes(one_of_two, (str(tmp_path),), 2, start_method="fork")
    (one, a), (two, b) = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    heads = towers()
    loss = Matching()(Output(heads=heads), torch.tensor([3, 8, 3, -100, 9]), 4)
    loss.backward()
    torch.testing.assert_close(one + two, loss)
    for i, name in enumerate(("image", "text")):
        torch.testing.assert_close(torch.cat((a[i], b[i])), heads[name].grad)
    torch.testing.assert_close(a[2] + b[2], heads["scale"].grad)


# ------------------------------------------------------------------------------------------------ training


def learn(tmp_path, **settings):
    model = af.build("clip", "tiny", seed=0, overrides={"scale": 4.5})
    given = model.example(4, {}, torch.Generator().manual_seed(0))
    batches = [{**given, "labels": torch.arange(4)}] * 40
    given_ = Settings(**{"steps": 3, "lr": 1e-3, "warmup": 0, **settings})
    return model, fit(model, batches, Matching(), given_, tmp_path / "run")


def test_accumulated_batches_are_refused_with_the_way_out(tmp_path):
    with pytest.raises(ValueError, match=r"accumulate=4: Matching compares.*large; activation_checkpointing="):
        learn(tmp_path, accumulate=4)


def test_the_scale_stays_below_its_limit(tmp_path):
    model, _ = learn(tmp_path, lr=0.5)
    assert float(model.scale.detach().exp()) <= HOTTEST * 1.0001
    assert float(af.build("clip", "tiny", seed=0, overrides={"scale": 1.5}).scale.detach()) == 1.5


@pytest.fixture
def place(tmp_path):
    """Pictures of three colours with their captions."""
    rng, rows = np.random.default_rng(0), []
    for i in range(60):
        name = ("red", "green", "blue")[i % 3]
        pixels = rng.normal(20, 5, (9, 12, 3))
        pixels[..., i % 3] += 200
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(tmp_path / f"{i}.png")
        rows.append(json.dumps({"image": f"{i}.png", "text": f"a {name} picture"}))
    (tmp_path / "rows.jsonl").write_text("\n".join(rows) + "\n")
    return tmp_path


def test_rows_of_image_and_text_are_learned_and_opened_elsewhere(place, capsys):
    transformers = pytest.importorskip("transformers")
    changes = {"image.image": 8, "image.depth": 1, "image.channels": 3, "text.depth": 1, "text.end": 0}
    given: dict[str, Any] = {"overrides": changes, "steps": 100, "batch": 16, "lr": 5e-3, "warmup": 10, "vocab": 300}
    result: Any = train("clip", "tiny", task="match", data=place / "rows.jsonl", out=place / "run", quiet=True, **given)
    assert result.task == "match" and result.held_out < 0.5 * result.baseline
    model = af.load(result.checkpoint)
    assert isinstance(model, DualTower) and model.processor.kind == "CLIPImageProcessor"
    files, texts = [place / f"{i}.png" for i in range(3)], [f"a {n} picture" for n in ("red", "green", "blue")]
    assert [next(iter(shares)) for shares in classify(model, files, texts)] == texts
    with torch.no_grad():
        theirs = transformers.CLIPModel.from_pretrained(result.checkpoint).eval()
        ids = torch.tensor([model.tokenizer.encode(t) for t in texts])
        wanted = theirs(input_ids=ids, pixel_values=model.processor(files)["pixel_values"]).logits_per_image
    found = model.scale.detach().exp() * embed(model, files) @ embed(model, texts).mT
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    tuned = finetune(
        str(result.checkpoint), str(place / "rows.jsonl"), steps=2, batch=16, quiet=True, out=place / "tuned"
    )
    assert tuned.task == "match" and tuned.folder is not None and af.load(tuned.folder).processor == model.processor
    _ask(result.checkpoint, place, capsys)


def _ask(folder, place, capsys):
    """The same on the command line."""
    from anyformer.cli import main

    picture = str(place / "2.png")
    assert main(["classify", str(folder), picture, "--labels", "red, green,blue", "--template", "a {} picture"]) == 0
    lines = capsys.readouterr().out.split("\n")
    assert lines[0] == picture and lines[1].split()[1] == "blue"
    words = ["a red picture", "a blue picture"]
    assert main(["embed", str(folder), *words, "--query", picture]) == 0
    assert capsys.readouterr().out.split("\n")[0].endswith("a blue picture")
    assert main(["embed", str(folder), picture, str(place / "0.png"), "--query", "a red picture"]) == 0
    assert capsys.readouterr().out.split("\n")[0].endswith("0.png")
    assert main(["embed", str(folder), picture, "a red picture"]) == 2
    assert "one kind at a time" in capsys.readouterr().err


def test_what_can_be_trained_on():
    assert registry.choose(None, "clip", af.recipe("clip", "tiny")) == "match"
    with pytest.raises(ValueError, match="it can on match"):
        registry.choose("images", "clip", af.recipe("clip", "tiny"))


# ------------------------------------------------------------------------------------------------ what is asked


def model_of_both():
    tokenizer = registry.add_special_tokens(Tokenizer.bytes_level(), "match")
    end = tokenizer.role_id("eos_token")
    model = af.build("clip", "tiny", seed=0, overrides={"text.vocab": 300, "text.end": end}).eval()
    model.tokenizer = tokenizer
    model.processor = ImageProcessor(size=(16, 16), image_mean=(0.5,) * 3, image_std=(0.5,) * 3)
    return model


def test_vectors_do_not_depend_on_others_and_long_texts_keep_their_end():
    model = model_of_both()
    pictures = [np.random.default_rng(i).integers(0, 256, (5 + i, 9, 3), dtype=np.uint8) for i in range(3)]
    torch.testing.assert_close(embed(model, pictures), torch.cat([embed(model, [p]) for p in pictures]))
    texts = ["a", "a longer text", "x" * 90]
    with pytest.warns(UserWarning, match="longer than 32 tokens"):
        found = embed(model, texts)
    torch.testing.assert_close(found[:2], torch.cat([embed(model, [t]) for t in texts[:2]]))
    torch.testing.assert_close(found.norm(dim=-1), torch.ones(3))


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda m: m(input_ids=torch.tensor([[1, 0]])), r"this model reads pixel_values .*call model\(pixel_values="),
        (lambda m: m(pixel_values=torch.randn(1, 3, 16, 16)), "this model reads input_ids"),
        (lambda m: m(input_ids=torch.tensor([[1, 0]]), pixels=torch.zeros(1)), "no part of this model reads 'pixels'"),
        (lambda m: embed(m, ["a", b"b"]), "1 of 2 items are texts"),
        (lambda m: embed(m, []), "at least one text or picture"),
        (lambda m: embed(m, "a"), "at least one text or picture"),
        (lambda m: embed(m, [3]), "'image' is a int"),
        (lambda m: classify(m, [b""]), "labels must be a list of at least two"),
        (lambda m: classify(m, [b""], ["a", "a"]), "labels must be a list of at least two different"),
        (lambda m: classify(m, [b""], ["a", "b"], template="x"), "it needs {}"),
        (lambda m: classify(af.build("bert", "tiny"), ["a"], ["a", "b"]), "labels are for a model with two towers"),
        (lambda m: embed(af.build("bert", "tiny"), [Path("a.png")]), "this model reads text; got PosixPath"),
        (lambda m: DualTower.of({"a": af.recipe("vit", "tiny")}).build(), "DualTower has two towers, got a"),
        (lambda m: af.recipe("clip", "tiny", image=None, text=None), "it has at least one tower"),
    ],
)
def test_mistakes_are_named(call, told):
    with pytest.raises(ValueError, match=told):
        call(model_of_both())


def test_a_classifier_of_pictures_names_its_own_classes(tmp_path, capsys):
    from anyformer.cli import main

    model = af.build("vit", "tiny", seed=0, classes=3).eval()
    model.processor = ImageProcessor(size=(16, 16), image_mean=(0.5,) * 3, image_std=(0.5,) * 3)
    model.origin = {"config": {"id2label": {"0": "cat", "1": "dog", "2": "hen"}}}
    picture = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    (shares,) = classify(model, [picture])
    with torch.no_grad():
        wanted = model(**model.processor(picture)).logits[0].softmax(-1)
    assert shares == pytest.approx(dict(zip(("cat", "dog", "hen"), wanted.tolist(), strict=True)))
    assert list(shares.values()) == sorted(shares.values(), reverse=True)
    assert embed(model, [picture]).shape == (1, 32)
    Image.fromarray(picture).save(tmp_path / "p.png")
    model.save(tmp_path / "vit")
    assert main(["classify", str(tmp_path / "vit"), str(tmp_path / "p.png"), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)[0]["classes"]) == 3
    assert main(["classify", str(tmp_path / "vit"), str(tmp_path / "gone.png")]) == 2
    assert "there is no picture" in capsys.readouterr().err

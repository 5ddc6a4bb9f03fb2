"""The discrete autoencoder beside dalle-pytorch's, with the same weights and noise; codes, pixels, losses."""

from __future__ import annotations

import math
import sys
import types
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import anyformer as af
from anyformer.contract.subjects import redrawn
from anyformer.generate import embed
from anyformer.generate.drawing import draw, ranked
from anyformer.hub.processors import ImageProcessor
from anyformer.models.dvae import annealed
from anyformer.parts.codes import gumbel
from anyformer.parts.text_and_codes import sequence
from anyformer.train.objectives import reconstruction

STUBS = {  # packages that it imports for models that it downloads, and one that setuptools no longer has
    "omegaconf": ("OmegaConf",), "taming.models.vqgan": ("VQModel", "GumbelVQ"), "pkg_resources": ("get_distribution",),
}  # fmt: skip


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> Any:
    """dalle-pytorch, without packages that only its downloads need."""
    for path, names in STUBS.items():
        for depth in range(1, path.count(".") + 2):
            name = ".".join(path.split(".")[:depth])
            monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
        for name in names:
            setattr(sys.modules[path], name, object)
    return pytest.importorskip("dalle_pytorch.dalle_pytorch", reason="needs pip install --no-deps dalle-pytorch")


def theirs_of(package: Any, model: Any) -> nn.Module:
    """Their model with our weights: every tensor is used once."""
    c = model.config
    other = package.DiscreteVAE(
        image_size=c.image, num_tokens=c.vocab, codebook_dim=c.width, num_layers=c.layers, num_resnet_blocks=c.residual,
        hidden_dim=c.dim, channels=c.channels, temperature=c.temperature, straight_through=c.draws != "soft",
        reinmax=c.draws == "reinmax", kl_div_loss_weight=1.0, normalization=((c.mean,) * 3, (c.std,) * 3),
    )  # fmt: skip
    left = dict(model.state_dict())
    tensors = {"codebook.weight": left.pop("codes.table.weight")}
    scores, last = c.layers + c.residual, bool(c.residual) + c.layers + c.residual
    for tail in ("weight", "bias"):
        whole = left.pop(f"codes.scores.{tail}")
        tensors[f"encoder.{scores}.{tail}"] = whole[..., None, None] if tail == "weight" else whole
        tensors[f"decoder.{last}.{tail}"] = left.pop(f"decoder.last.{tail}")
        if c.residual:
            tensors[f"decoder.0.{tail}"] = left.pop(f"decoder.enter.{tail}")
    nets = {"conv": "0", "first": "net.0", "second": "net.2", "last": "net.4"}
    for name in list(left):
        side, _, number, layer, tail = name.split(".")
        place = int(number) + (bool(c.residual) if side == "decoder" else 0)
        tensors[f"{'encoder' if side == 'embed' else side}.{place}.{nets[layer]}.{tail}"] = left.pop(name)
    other.load_state_dict(tensors)
    return other


CASES: dict[str, dict[str, Any]] = {
    "soft": {"residual": 1}, "no residual": {"residual": 0, "layers": 3, "channels": 1}, "two": {"residual": 2},
    "straight": {"draws": "straight", "temperature": 0.4}, "reinmax": {"draws": "reinmax", "temperature": 0.7},
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_it_is_dalle_pytorchs_with_the_same_noise(package: Any, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = af.build("dvae", "tiny", **{"layers": 2, "dim": 6, "vocab": 9, "width": 5, **CASES[case]})
    redrawn(model)
    other, c = theirs_of(package, model), model.config
    pixels = torch.rand(3, c.channels, c.image, c.image)
    cells = (c.image // 2**c.layers) ** 2
    noise = gumbel(3, cells, c.vocab, generator=torch.Generator().manual_seed(1))
    side = math.isqrt(cells)

    def exponential(like: torch.Tensor, **_: Any) -> torch.Tensor:  # what gumbel_softmax draws: -log of it is the noise
        return (-noise).exp().mT.unflatten(2, (side, side)).to(like)

    kept = torch.Tensor.exponential_
    monkeypatch.setattr(torch.Tensor, "exponential_", lambda x, *a, **k: x.copy_(exponential(x)))
    loss, wanted = other(pixels, return_loss=True, return_recons=True)
    monkeypatch.setattr(torch.Tensor, "exponential_", kept)
    given = (pixels - c.mean) / c.std
    out = model(pixel_values=given, noise=noise)
    torch.testing.assert_close(out.heads["pixels"], wanted)
    torch.testing.assert_close(out.logits, other(pixels, return_logits=True).flatten(2).mT)
    # theirs adds up the divergence over cells and pictures; ours is its mean
    ours = reconstruction(out, given, given.numel(), divergence=3 * cells)
    torch.testing.assert_close(ours, loss)
    other.zero_grad()
    loss.backward()
    ours.backward()
    slopes = {name: p.grad for name, p in model.named_parameters()}
    mirror = af.build("dvae", "tiny", **{"layers": 2, "dim": 6, "vocab": 9, "width": 5, **CASES[case]})
    with torch.no_grad():
        for name, parameter in mirror.named_parameters():
            parameter.copy_(slopes[name])  # type: ignore[arg-type]
    for name, parameter in theirs_of(package, mirror).named_parameters():
        torch.testing.assert_close(dict(other.named_parameters())[name].grad, parameter.data, msg=name)
    codes = model.coded(given)  # type: ignore[operator]
    assert torch.equal(codes.flatten(1), other.get_codebook_indices(pixels))  # type: ignore[operator]
    torch.testing.assert_close(model.decode(codes), (other.decode(codes.flatten(1)) * c.std + c.mean).clamp(0, 1))  # type: ignore[operator]


def test_the_divergence_does_not_grow_with_the_batch_or_the_cells() -> None:
    model = redrawn(af.build("dvae", "tiny"))
    one = torch.randn(1, 3, 8, 8)
    losses = []
    for many in (one, one.expand(4, -1, -1, -1), torch.cat((one, one.flip(3)), 3)):
        out = model(pixel_values=many)
        q = out.logits.log_softmax(-1)
        losses.append((reconstruction(out, many, many.numel(), 1.0) - reconstruction(out, many, many.numel())).item())
        assert losses[-1] == pytest.approx((q.exp() * (q - math.log(1 / 20))).sum(-1).mean().item(), rel=1e-5)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_pixels_go_from_0_to_1_and_codes_survive() -> None:
    model = redrawn(af.build("dvae", "tiny", mean=0.3, std=0.2))
    codes = torch.arange(20).view(1, 4, 5)
    pixels = model.decode(codes)
    assert pixels.shape == (1, 3, 8, 10) and 0 <= pixels.min() < pixels.max() <= 1
    raw = model.decoder(model.codes.table(codes).permute(0, 3, 1, 2))
    torch.testing.assert_close(pixels, (raw * 0.2 + 0.3).clamp(0, 1))
    given = torch.randn(2, 3, 8, 12)
    out = model(pixel_values=given)
    torch.testing.assert_close(model.decode(model.coded(given)), (out.heads["pixels"] * 0.2 + 0.3).clamp(0, 1))


def test_noise_draws_codes_by_their_probability() -> None:
    model = redrawn(af.build("dvae", "tiny", draws="straight"))
    x = torch.randn(1, 1, 12).expand(4000, 1, 12)
    noise = gumbel(4000, 1, 20, generator=torch.Generator().manual_seed(0))
    vectors, scores = model.codes(x, noise)
    drawn = (vectors @ model.codes.table.weight.pinverse()).argmax(-1).flatten()
    counted = torch.cdist(vectors[:, 0], model.codes.table.weight).argmin(-1).bincount(minlength=20) / 4000
    assert drawn.shape == (4000,) and (counted - scores[0, 0].softmax(-1)).abs().max() < 0.03


def test_a_lower_temperature_is_nearer_to_one_code() -> None:
    model, given = redrawn(af.build("dvae", "tiny")), torch.randn(1, 3, 8, 8)
    noise = gumbel(1, 16, 20, generator=torch.Generator().manual_seed(0))
    one = redrawn(af.build("dvae", "tiny", draws="straight"))(pixel_values=given, noise=noise).heads["pixels"]
    off = []
    for temperature in (annealed(0, 10), annealed(5, 10), annealed(10, 10)):
        model.codes.temperature = temperature
        off.append(F.mse_loss(model(pixel_values=given, noise=noise).heads["pixels"], one).item())
    assert off[0] > off[1] > off[2]
    assert annealed(0, 10) == 1 and annealed(10, 10) == annealed(99, 10) == 1 / 16


def test_bad_input_is_named() -> None:
    model = af.build("dvae", "tiny", layers=2)
    for inputs, said in (
        ({"pixel_values": torch.zeros(1, 3, 8, 6)}, r"\(8, 6\) pixels are no whole number of cells of 4"),
        ({"pixel_values": torch.zeros(1, 1, 8, 8)}, r"pixel_values must be \(batch, 3, height, width\)"),
        ({"pixel_values": torch.zeros(1, 3, 8, 8), "noise": torch.zeros(1, 4, 9)}, r"\(1, 4, 20\), got \(1, 4, 9\)"),
    ):
        with pytest.raises(ValueError, match=said):
            model(**inputs)
    with pytest.raises(ValueError, match="code 20 is outside the table: codes go from 0 to 19"):
        model.decode(torch.full((1, 2, 2), 20))
    with pytest.raises(ValueError, match=r"codes must be whole numbers \(batch, rows, columns\)"):
        model.decode(torch.zeros(1, 4, dtype=torch.long))
    for options, said in (
        ({"temperature": 0.0}, "temperature is above 0"), ({"draws": "hard"}, "soft.*straight.*reinmax"),
        ({"image": 9, "layers": 1}, "an image of 9 pixels cannot be halved layers=1 times"), ({"std": 0.0}, "above 0"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=said):
            af.build("dvae", "tiny", **options)


# ------------------------------------------------------------------------------------------------ the decoder


VIEWS = {"full": "full", "row": "axial_row", "column": "axial_col", "square": "conv_like"}
SIZES: dict[str, Any] = {"dim": 24, "depth": 2, "heads": 2, "head_dim": 14, "vocab": 40, "text": 5, "codes": 20}
PLACES = {
    "norm.mixer": "fn.norm",
    "norm.ffn": "fn.norm",
    "norm.mixer_out": "fn.norm_out",
    "norm.ffn_out": "fn.norm_out",
}


def decoder_of(package: Any, model: Any) -> Any:
    """Their decoder with our weights."""
    c = model.config
    vae = package.DiscreteVAE(image_size=2 * c.columns, num_tokens=c.codes, codebook_dim=4, num_layers=1, hidden_dim=4)
    other = package.DALLE(
        dim=c.dim, vae=vae, num_text_tokens=c.vocab, text_seq_len=c.text, depth=c.depth, heads=c.heads,
        dim_head=c.head_dim, attn_types=tuple(VIEWS[view] for view in c.views), shift_tokens=c.shift,
        sandwich_norm=c.sandwich,
    ).eval()  # fmt: skip
    ours = dict(model.state_dict())
    wanted = other.state_dict()
    made = {name: value for name, value in wanted.items() if name.startswith("vae.") or "pos_emb" in name}
    table = ours.pop("embed.tokens.weight")
    made |= {"text_emb.weight": table[: c.vocab + c.text], "image_emb.weight": table[c.vocab + c.text :]}
    made |= {f"to_logits.0.{t}": ours.pop(f"norm.{t}") for t in ("weight", "bias")}
    made |= {"to_logits.1.weight": ours.pop("head.proj.weight"), "to_logits.1.bias": ours.pop("head.bias")}
    for i in range(c.depth):
        for half, branch in enumerate(("mixer", "ffn")):
            block, at = (f"blocks.{2 * i + half}", "mixer") if c.shift else (f"blocks.{i}", branch)
            to = f"transformer.layers.layers.{i}.{half}"
            made[f"{to}.scale"] = ours.pop(f"{block}.scale.{at}.weight")[None, None]
            for name in (at, f"{at}_out"):
                for tail in ("weight", "bias") if f"{block}.norm.{name}.weight" in ours else ():
                    to_norm = f"{to}.fn.norm{'_out' if name.endswith('_out') else ''}"
                    made[f"{to_norm}.{tail}"] = ours.pop(f"{block}.norm.{name}.{tail}")
            inner = f"{block}.{at}.inside" if c.shift else f"{block}.{at}"
            theirs = f"{to}.fn.fn.fn.fn.fn" if c.shift else f"{to}.fn.fn.fn" if half == 0 else f"{to}.fn.fn"
            theirs = f"{to}.fn.fn.fn.fn" if c.shift and half == 1 else theirs
            if half == 0:
                whole = torch.cat([ours.pop(f"{inner}.{n}.weight") for n in "qkv"])
                made[f"{theirs}.to_qkv.weight"] = whole
                made |= {f"{theirs}.to_out.0.{t}": ours.pop(f"{inner}.o.{t}") for t in ("weight", "bias")}
            else:  # their gate is the second half
                for tail in ("weight", "bias"):
                    made[f"{theirs}.net.0.{tail}"] = torch.cat(
                        [ours.pop(f"{inner}.{n}.{tail}") for n in ("up", "gate")]
                    )
                    made[f"{theirs}.net.3.{tail}"] = ours.pop(f"{inner}.down.{tail}")
    assert not ours, list(ours)
    other.load_state_dict(made)
    return other


@pytest.mark.parametrize("changes", [{}, {"shift": False}, {"sandwich": True}], ids=str)
@pytest.mark.parametrize("view", VIEWS)
def test_the_decoder_is_dalle_pytorchs(package: Any, view: str, changes: dict[str, Any]) -> None:
    c: dict[str, Any] = {**SIZES, "views": (view, "full"), "columns": 4, "square": 5, **changes}
    model = redrawn(af.build("dalle", "tiny", **c)).eval()
    other, config = decoder_of(package, model), model.config
    noise = torch.Generator().manual_seed(0)
    text = torch.tensor([[5, 6, 7, 0, 0], [9, 8, 3, 2, 1], [0] * 5])
    codes = torch.randint(0, config.codes, (3, 16), generator=noise)
    ids = sequence(text.tolist(), config.vocab, config.text, codes)[:, :-1]  # the last code predicts nothing
    theirs = other(text.clone(), codes)
    ours, allowed = model(ids).logits, theirs > -1e30
    assert torch.equal(allowed, ours > -9e3)
    torch.testing.assert_close(ours[allowed], theirs[allowed])
    # the loss, and its gradient by the table of tokens
    loss = other(text.clone(), codes, return_loss=True)
    wanted = torch.cat(
        (sequence(text.tolist(), config.vocab, config.text)[:, 1:], codes + config.vocab + config.text), 1
    )
    nll = F.cross_entropy(ours.flatten(0, 1), wanted.flatten(), reduction="none").view_as(wanted)
    mine = (nll[:, : config.text].mean() + 7 * nll[:, config.text :].mean()) / 8
    torch.testing.assert_close(mine, loss)
    mine.backward()
    loss.backward()
    slope = model.embed.tokens.weight.grad
    torch.testing.assert_close(slope[: config.vocab + config.text], other.text_emb.weight.grad)
    torch.testing.assert_close(slope[config.vocab + config.text :], other.image_emb.weight.grad)
    scale = model.blocks[0].scale["mixer"].weight.grad
    torch.testing.assert_close(scale, other.transformer.layers.layers[0][0].scale.grad.flatten())


def test_the_scale_of_a_branch_falls_with_the_depth() -> None:
    recipe = af.recipe("dalle", "tiny", depth=25)
    starts = [block.scale.start for block in recipe["blocks"]][::2]
    assert starts == [0.1] * 18 + [1e-5] * 6 + [1e-6]


def test_a_text_that_does_not_fit_is_named() -> None:
    with pytest.raises(ValueError, match="text 1 must be at most 5 ids from 0 to 39"):
        sequence([[1], [1, 2, 3, 4, 5, 6]], 40, 5)
    with pytest.raises(ValueError, match="text 0 must be"):
        sequence([[40]], 40, 5)
    codes = torch.arange(16).view(1, 4, 4)
    assert sequence([[7]], 40, 5, codes).tolist() == [[0, 7, 41, 42, 43, 44, *range(45, 61)]]


# ------------------------------------------------------------------------------------------------ pictures of texts


@pytest.fixture(scope="module")
def writer() -> Any:
    model = redrawn(af.build("dalle", "tiny")).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.5)  # so that the text matters
    return model


def by_hand(model: Any, text: list[int], guidance: float = 1.0) -> list[int]:
    """The likeliest codes, each from the whole sequence."""
    codes: list[int] = []
    for _ in range(16):
        known = torch.tensor([codes], dtype=torch.long)
        with torch.no_grad():
            told, free = (model(sequence([t], 40, 5, known)).logits[0, -1, 45:] for t in (text, []))
        codes.append(int((free + guidance * (told - free)).argmax()))
    return codes


@pytest.mark.parametrize("guidance", [1.0, 2.5, 0.0])
def test_codes_are_those_of_the_formula(writer: Any, guidance: float) -> None:
    texts = [[7, 9, 3], [5]]
    found = draw(writer, texts, guidance=guidance, temperature=0.0)
    assert found.shape == (2, 4, 4) and texts == [[7, 9, 3], [5]]  # what was given is not written
    assert found.flatten(1).tolist() == [by_hand(writer, text, guidance) for text in texts]


def test_guidance_of_1_is_the_text_and_of_0_none(writer: Any) -> None:
    options: dict[str, Any] = {"seed": 3, "temperature": 1.0}
    free = draw(writer, [[]], **options)
    assert torch.equal(draw(writer, [[7, 9]], guidance=0.0, **options), free)
    assert not torch.equal(draw(writer, [[7, 9]], **options), free)
    both = draw(writer, [[7, 9], [5]], seed=3, top_k=4)
    assert torch.equal(both[1:], draw(writer, [[5]], seed=3, top_k=4))
    assert not torch.equal(both, draw(writer, [[7, 9], [5]], seed=4, top_k=4))


def test_known_codes_stay(writer: Any) -> None:
    known = torch.tensor([[3, 1, 4, 1, 5]])
    found = draw(writer, [[7]], known=known, seed=0).flatten(1)
    assert torch.equal(found[:, :5], known)
    whole = draw(writer, [[7]], known=torch.tensor([by_hand(writer, [7])[:6]]), temperature=0.0)
    assert whole.flatten().tolist() == by_hand(writer, [7])


def test_drawing_refuses_what_it_cannot_do(writer: Any) -> None:
    for call, said in (
        (lambda: draw(af.build("llama", "tiny"), [[5]]), "llama writes no codes of pictures"),
        (lambda: draw(writer, []), "texts is empty"), (lambda: draw(writer, ["a bird"]), "need a tokenizer"),
        (lambda: draw(writer, [[7]], known=torch.zeros(1, 16, dtype=torch.long)), "known must be"),
        (lambda: draw(writer, [[7]], known=torch.full((1, 2), 20)), "code 20"),
        (lambda: draw(writer, [[7]], guidance=float("nan")), "guidance"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=said):
            call()


def test_clip_ranks_candidates() -> None:
    clip = af.build("clip", "tiny", seed=0)
    clip.processor = ImageProcessor(size=(16, 16), image_mean=(0.5,) * 3, image_std=(0.5,) * 3)
    pictures = torch.rand(5, 3, 16, 16)
    vector = F.normalize(torch.randn(20), dim=0)
    order = ranked(clip, pictures, vector)
    seen = embed(clip, [p.numpy() for p in pictures]) @ vector
    assert order.tolist() == seen.argsort(descending=True).tolist()
    with pytest.raises(ValueError, match="ranked needs a model of pictures and texts, with vectors of one space"):
        ranked(af.build("vit", "tiny"), pictures, "a bird")

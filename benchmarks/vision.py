"""Pictures at the published shape of the small sizes, with random weights, beside the reference of each architecture.

Inference is one pass without gradients; a step is forward, the mean square of the outputs, and backward, in training
mode with dropout 0, without an optimiser; ours keeps freed memory for the next step, as in `fit`. Float32, eager, fused
attention where the peer has it. Rows: Swin-T, ViT-B/16 and CLIP-B/32 (both towers, texts of 77 tokens) at 224 x 224,
DETR-R50 at 640 x 640, DiT-S/2 on latents of 32 x 32, and the prefill of LLaVA: a CLIP-L/14 tower at 336 x 336, whose
576 positions stand in 32 tokens of a decoder of SmolLM2's shape. timm has Swin and ViT; it lives in an environment of
its own, `.venv-timm` or that of $BENCH_TIMM_PYTHON.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.contest import THREADS, Contestant, compete, ratio, spread, started
from benchmarks.duel import stepping
from benchmarks.report import Claim, Section, row, times

BATCH = {"swin": 4, "vit": 4, "clip": 4, "detr": 1, "dit": 8, "llava": 1}
NAMES = {
    "swin": "Swin-T", "vit": "ViT-B/16", "clip": "CLIP-B/32", "detr": "DETR-R50", "dit": "DiT-S/2",
    "llava": "LLaVA, 576 positions",
}  # fmt: skip
PEERS = {name: "diffusers" if name == "dit" else "transformers" for name in NAMES}
TIMM = {"swin": "swin_tiny_patch4_window7_224", "vit": "vit_base_patch16_224"}  # what timm has of these
DECLARED: list[Any] = []  # a declaration ends with the object that made it
PATCH, SIDE, IDS, TEXT, PLACEHOLDER = 14, 336, 49_153, 32, 49_152


def _pictures(name: str, side: int, channels: int = 3) -> Any:
    import torch

    return torch.randn(BATCH[name], channels, side, side, generator=torch.Generator().manual_seed(0))


def _inputs(name: str) -> dict[str, Any]:
    """The same inputs for both, under the names of transformers."""
    import torch

    if name in ("swin", "vit"):
        return {"pixel_values": _pictures(name, 224)}
    if name == "detr":
        return {"pixel_values": _pictures(name, 640)}
    if name == "dit":
        made = {"pixel_values": _pictures(name, 32, 4), "timestep": torch.arange(BATCH[name]) * 100}
        return {**made, "class_labels": torch.arange(BATCH[name])}
    if name == "clip":
        ids = torch.randint(1, 40_000, (BATCH[name], 77), generator=torch.Generator().manual_seed(1))
        ids[:, -1] = 49_407
        return {"pixel_values": _pictures(name, 224), "input_ids": ids}
    places = (SIDE // PATCH) ** 2
    ids = torch.randint(1, 40_000, (1, places + TEXT), generator=torch.Generator().manual_seed(1))
    ids[:, 4 : 4 + places] = PLACEHOLDER
    return {"pixel_values": _pictures(name, SIDE), "input_ids": ids}


def ours(name: str) -> tuple[Any, dict[str, Any], Callable[[Any], Any]]:
    """Our model, its inputs, and what is read of its output."""
    import anyformer as af

    inputs = _inputs(name)
    if name == "swin":
        return af.build("swin", "t", seed=0, drop_path=0.0), inputs, lambda out: out.logits
    if name == "vit":
        return af.build("vit", "b16", seed=0), inputs, lambda out: out.logits
    if name == "clip":
        return af.build("clip", "b32", seed=0), inputs, lambda out: out.logits
    if name == "detr":
        return af.build("detr", "r50", seed=0, dropout=0.0), inputs, lambda out: out.heads["boxes"]
    if name == "dit":
        return af.build("dit", "s2", seed=0), inputs, lambda out: out.logits
    from anyformer.models.llava import LLaVA, Text, Tower, llava

    image = Tower(dim=1024, depth=24, heads=16, hidden=4096, image=SIDE, patch=PATCH)
    text = Text(dim=576, depth=30, heads=9, kv_heads=3, hidden=1536, vocab=IDS, context=2048, tied=True)
    return af.build(llava(LLaVA(image=image, text=text, token=PLACEHOLDER)), seed=0), inputs, lambda out: out.logits


def theirs(name: str) -> tuple[Any, dict[str, Any], Callable[[Any], Any]]:
    """The reference's model of the same shape, its inputs, and what is read of its output."""
    import torch
    import transformers as t

    torch.manual_seed(0)
    inputs = _inputs(name)
    if name == "swin":
        config = t.SwinConfig(drop_path_rate=0.0, num_labels=1000)
        return t.SwinForImageClassification(config), inputs, lambda out: out.logits
    if name == "vit":
        return t.ViTForImageClassification(t.ViTConfig(num_labels=1000)), inputs, lambda out: out.logits
    if name == "clip":
        return t.CLIPModel(t.CLIPConfig()), inputs, lambda out: out.logits_per_image
    if name == "detr":
        net = t.ResNetConfig(out_features=["stage4"])
        config = t.DetrConfig(use_timm_backbone=False, use_pretrained_backbone=False, backbone_config=net, dropout=0.0,
                               num_labels=91)  # fmt: skip
        return t.DetrForObjectDetection(config), inputs, lambda out: out.pred_boxes
    if name == "dit":
        from diffusers import DiTTransformer2DModel

        model = DiTTransformer2DModel(num_attention_heads=6, attention_head_dim=64, in_channels=4, out_channels=8,
                                      num_layers=12, sample_size=32)  # fmt: skip
        inputs["hidden_states"] = inputs.pop("pixel_values")
        return model, inputs, lambda out: out.sample
    vision = t.CLIPVisionConfig(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16,
                                image_size=SIDE, patch_size=PATCH)  # fmt: skip
    text = t.LlamaConfig(vocab_size=IDS, hidden_size=576, num_hidden_layers=30, num_attention_heads=9,
                         num_key_value_heads=3, intermediate_size=1536, tie_word_embeddings=True)  # fmt: skip
    config = t.LlavaConfig(vision_config=vision, text_config=text, image_token_index=PLACEHOLDER)
    return t.LlavaForConditionalGeneration(config), inputs, lambda out: out.logits


def timms(name: str) -> tuple[Any, dict[str, Any], Callable[[Any], Any]]:
    """timm's model of the same shape, in an environment of its own. It imports torchvision, whose build for GPUs lacks
    two operations beside a PyTorch for CPUs: they are declared, and no model here calls them."""
    import torch

    if not torch.cuda.is_available():
        DECLARED.append(torch.library.Library("torchvision", "FRAGMENT"))
        for lost in ("nms", "qnms"):
            DECLARED[-1].define(f"{lost}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import timm

    torch.manual_seed(0)
    model = timm.create_model(TIMM[name], drop_path_rate=0.0)
    return model, {"x": _inputs(name)["pixel_values"]}, lambda out: out


def build(key: str) -> tuple[dict[str, Any], Callable[[dict[str, Any]], dict[str, Any]]]:
    """The number of parameters, and the function that makes a pass or a step."""
    import torch

    torch.set_num_threads(THREADS)
    side, _, name = key.partition("_")
    model, inputs, read = {"ours": ours, "theirs": theirs, "timm": timms}[side](name)
    model.requires_grad_(True)
    parameters = {"parameters": sum(p.numel() for p in model.parameters())}
    return parameters, stepping(model, lambda: read(model(**inputs)).square().mean(), side == "ours")


def run(rounds: int = 8) -> Section:
    """The section of the report."""
    notes: list[str] = []
    table, claims = [row("", "", "batch", "inference, s", "time / ours", "step, s", "time / ours")], list[Claim]()
    for name, title in NAMES.items():
        sides = {
            f"ours_{name}": Contestant(f"anyformer {title}"),
            f"theirs_{name}": Contestant(PEERS[name], against=f"ours_{name}"),
        }
        if name in TIMM:
            sides[f"timm_{name}"] = Contestant("timm", "timm", f"ours_{name}")
        workers = started("vision", sides, notes)
        kinds = {"inference": False} if name == "llava" else {"inference": False, "step": True}
        cells: dict[str, list[str]] = {key: [] for key in workers}
        for kind, step in kinds.items():
            compete(workers, sides, 1, {"step": step}, notes)  # first use
            answers = compete(workers, sides, rounds, {"step": step}, notes)
            seconds = {key: [a["seconds"] for a in made] for key, made in answers.items()}
            mine = seconds[f"ours_{name}"]
            for key, values in seconds.items():
                against = times(ratio(values, mine)) if key != f"ours_{name}" else ""
                cells[key] += [f"{spread(values)[0]:.2f}", against]
                if against:
                    own, peer = (f"{spread(v)[0]:.2f} s" for v in (mine, values))
                    claims.append(Claim(f"{title}, {kind}", sides[key].name, own, peer, ratio(values, mine), rounds))
        for key, worker in workers.items():
            table.append(row(title, sides[key].name, str(BATCH[name]), *cells[key], *[""] * (4 - len(cells[key]))))
            worker.close()
    return Section("Pictures", (__doc__ or "").strip(), table, claims, notes)


if __name__ == "__main__":
    print(run().markdown("this machine"))

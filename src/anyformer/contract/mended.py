"""Faults of an oracle's classes that no file expresses: mended here, so that their numbers are those of the paper."""

from __future__ import annotations

import functools
import math
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from anyformer.contract import diffusers


def mended(part: Any) -> None:
    """Mends faults of their classes that no file can express."""
    match type(part).__name__:
        case "ReformerOnlyLMHead":  # since 5.0 it lacks its bias, which published weights have
            part.register_forward_hook(lambda head, inputs, logits: logits + head.bias)
        case "ReformerModel":  # its hidden states include the padding that it adds
            part.register_forward_hook(cut)
        case "AxialPositionEmbeddings":  # in training it takes texts of one length only, and drops whole channels
            part.eval().learns = False
            part.train = lambda mode=True: (part.__dict__.update(learns=mode), part)[1]
            part.register_forward_hook(lambda table, ids, x: nn.functional.dropout(x, table.dropout, table.learns))
        case "RagSequenceForGeneration":  # its loss asks the generator's config for an id that T5's lacks since 5.0
            part.config.generator.__dict__.setdefault("bos_token_id", None)
        case "DetrConvEncoder":  # it freezes its convolutions when it is made
            part.requires_grad_(True)
        case "IdeficsForVisionText2Text":  # its loss has no place for the additional ids
            usual_loss = part.loss_function
            part.loss_function = lambda logits, labels, vocab_size, **more: usual_loss(
                logits=logits, labels=labels, vocab_size=logits.shape[-1], **more
            )
        case "DiTTransformer2DModel":
            diffusers.shared(part)
            diffusers.unsquared(part)
        case "LxmertForPreTraining":  # it scores objects only beside their labels
            part.register_forward_hook(scored)
        case "Qwen2_5_VLModel":  # since 5.0 text behind a video begins inside it; before, and in Omni, behind it
            part.get_rope_index = behind(part)
        case "LabelEmbedding":  # in training it drops classes at random, which the objective does here
            part.dropout_prob = 0.0
        case "DPTViTHybridEmbeddings":  # its model has no argument for other sizes than the trained one
            part.register_forward_pre_hook(
                lambda module, inputs, named: (inputs, {**named, "interpolate_pos_encoding": True}), with_kwargs=True
            )
        case "InformerProbSparseAttention":  # it draws other keys in each pass, in evaluation, too
            part.register_forward_pre_hook(lambda mixer, inputs: None if mixer.training else void(torch.manual_seed(0)))
        case "AutoformerForPrediction":  # the last of its decoder's states is one of the head, in another width
            part.register_forward_hook(without_last)
        case "AutoformerAttention":  # the delays of a row are those of others: it is given one after another
            part.forward = functools.partial(alone, part.forward)
        case "EsmForProteinFolding":  # its language model is cut off; its structures have their layers as first axis
            part.esm.requires_grad_(True)
            part.compute_language_model_representations = functools.partial(
                learning, part.compute_language_model_representations
            )
            part.register_forward_hook(proteins_first)
        case "EsmFoldStructureModule":  # `save_pretrained` cannot write buffers of its first pass
            part.register_forward_hook(without_tables)
        case "SwinLayer":  # a small grid shrinks its windows for good, and their bias not at all
            usual = {"window_size": part.window_size, "shift_size": part.shift_size}
            part.register_forward_pre_hook(lambda layer, inputs: layer.__dict__.update(usual))
            part.attention.relative_position_bias.register_forward_hook(
                lambda bias, inputs, whole: inner(whole, part.window_size)
            )


def alone(forward: Any, hidden_states: Tensor, key_value_states: Tensor | None = None, **more: Any) -> Any:
    """What the layer gives for each row by itself."""
    sources = [None] * len(hidden_states) if key_value_states is None else key_value_states.split(1)
    kept = lambda t: t if t.dtype is torch.float64 else t.to(torch.float32)  # noqa: E731
    with mock.patch.object(torch.Tensor, "float", kept):  # it adds up in float32, float64, too
        each = [forward(x, source, **more) for x, source in zip(hidden_states.split(1), sources, strict=True)]
    return tuple(map(torch.cat, zip(*each, strict=True)))


def without_last(model: nn.Module, inputs: Any, out: Any) -> None:
    """Takes the last state of the decoder out of the output."""
    if out.decoder_hidden_states is not None:
        out.decoder_hidden_states = out.decoder_hidden_states[:-1]


def void(_: Any) -> None:
    """Nothing, of anything: what a hook returns replaces its module's inputs."""


def behind(model: Any) -> Any:
    """The places of Qwen2.5-VL by the code of Qwen2.5-Omni, which are those of its paper."""
    from transformers.models.qwen2_5_omni import modeling_qwen2_5_omni as omni

    class Places(omni.Qwen2_5OmniPreTrainedModelForConditionalGeneration):  # type: ignore[misc]
        def __init__(self) -> None:
            nn.Module.__init__(self)
            words = model.config.to_dict() | {"audio_token_id": -1, "audio_start_token_id": -1, "seconds_per_chunk": 2}
            rate = model.config.vision_config.tokens_per_second
            self.config = SimpleNamespace(**words, position_id_per_seconds=rate)
            self.spatial_merge_size = model.config.vision_config.spatial_merge_size

    places = Places()

    def index(
        input_ids: Tensor, *_: Any, second_per_grid_ts: Any = None, mm_token_type_ids: Any = None, **more: Any
    ) -> Any:
        return places.get_rope_index(input_ids, second_per_grids=second_per_grid_ts, **more)

    return index


def scored(model: nn.Module, inputs: Any, out: Any) -> None:
    """Adds the scores of objects to LXMERT's output."""
    head: Any = model.obj_predict_head
    if out.vision_hidden_states is not None:
        for name, value in head(out.vision_hidden_states[-1]).items():
            out[{"obj": "object", "attr": "attribute", "feat": "feature"}[name] + "_score"] = value


def learning(states: Any, ids: Tensor) -> Tensor:
    """The states of the language model, from which its caller cannot cut the gradient off."""
    made = states(ids)
    made.detach = lambda: made
    return made


def without_tables(module: nn.Module, inputs: Any, out: Any) -> None:
    """Takes buffers that are not stored out of a module; it makes them again."""
    for name in list(module._non_persistent_buffers_set):
        delattr(module, name)


def proteins_first(model: nn.Module, inputs: Any, out: Any) -> None:
    """Gives ESMFold's structures the protein as first axis; of the atoms and their confidence, the last layer."""
    for name in ("frames", "unnormalized_angles", "angles"):
        out[name] = out[name].movedim(0, 2)  # (B, L, N, …)
    out["positions"], out["lddt_head"] = out["positions"][-1], out["lddt_head"][-1]


def cut(model: nn.Module, inputs: Any, out: Any) -> None:
    """Cuts hidden states to the length of the last one."""
    if out.hidden_states is not None:
        out.hidden_states = tuple(h[:, : out.last_hidden_state.shape[1]] for h in out.hidden_states)


def inner(bias: Tensor, side: int) -> Tensor:
    """The part of Swin's bias (1, H, n n, n n) that belongs to windows of side x side."""
    whole = math.isqrt(bias.shape[-1])
    places = torch.arange(whole**2).view(whole, whole)[:side, :side].flatten()
    return bias[:, :, places][..., places]

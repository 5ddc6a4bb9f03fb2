"""Codecs of sound of `transformers`, and decoders of their codes: how they are called. B sounds, N samples, C channels,
T frames or steps, Q books."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def call(model: Any, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Their codes (B, T, Q), sound (B, N, C) and vectors (B, T, D), all books in use.

    They have no training: there their own modules are joined by the gradient of the paper, which passes the codes as
    if they were not there.
    """
    x = inputs["input_values"].mT  # (B, C, N)
    mask = inputs.get("attention_mask", torch.ones_like(x[:, 0]))
    mask = mask[:, None].expand_as(x).bool()
    bandwidth = model.config.target_bandwidths[-1]
    codes, scales, pad = model.encode(x, mask, bandwidth, False)
    chunk, step = model.config.chunk_length or x.shape[-1], model.config.chunk_stride or x.shape[-1]
    vectors, found = [], []
    for place, scale in enumerate(scales):
        piece = (x * mask)[..., place * step : place * step + chunk]
        vector = model.encoder(piece if scale is None else piece / scale[..., None])  # (B, D, F)
        vectors.append(vector)
        found.append(codes[place][..., : vector.shape[-1]])
    if model.training:
        made = [
            v + (model.quantizer.decode(c.transpose(0, 1)) - v).detach() for v, c in zip(vectors, found, strict=True)
        ]
        sounds = [model.decoder(v) for v in made]
        sounds = [s if k is None else s * k.view(-1, 1, 1) for s, k in zip(sounds, scales, strict=True)]
        sound = sounds[0] if model.config.chunk_length is None else model._linear_overlap_add(sounds, step)
        sound = sound[..., : x.shape[-1]]
    else:
        sound = model.decode(codes, scales, mask, last_frame_pad_length=pad)[0]
    whole = {"codes": torch.cat(found, -1).mT, "hidden": torch.cat(vectors, -1).mT}
    return {"audio_codes": whole["codes"], "last_hidden_state": whole["hidden"], "audio_values": sound.mT}


def stacked(inputs: Mapping[str, Tensor], decoder: str) -> dict[str, Tensor]:
    """The inputs with codes as they read them: (B, T, Q) to (B Q, T)."""
    return {**inputs, decoder: inputs[decoder].mT.flatten(0, 1)}


def unstacked(logits: Tensor, books: int) -> Tensor:
    """Their scores (B Q, T, V) as ours, (B, T, Q, V)."""
    return logits.unflatten(0, (-1, books)).transpose(1, 2)

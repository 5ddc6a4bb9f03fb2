"""Intended differences from the oracle, and where they apply."""

from __future__ import annotations

from torch import Tensor

from anyformer.contract.subjects import Subject
from anyformer.core.recipe import Recipe
from anyformer.parts import Learned, Mamba, Mamba2, Rotary, Sinusoidal, TopK
from anyformer.parts.attention.block_sparse import BlockSparse
from anyformer.parts.folding.front import Stem
from anyformer.parts.objects import Objects
from anyformer.parts.proteins import ProteinTokens
from anyformer.parts.sound.conformer import ConvModule
from anyformer.parts.sound.pieces import SoundEncoder
from anyformer.parts.sound.positions import NormedPositions
from anyformer.parts.sound.stacked import CosinePlaces
from anyformer.parts.sound.waves import Waves

# Intended differences from the oracle. Ours is then compared with the oracle on each row alone, without padding, as
# the contract promises (item 6).
DEVIATIONS = {
    "pooled": "with padding on the left, the vector of a text is its first real token's; transformers reads place 0, "
    "which is padding",
    "places": "an encoder-decoder with places in its stream: with padding on the left, ours counts real tokens; "
    "transformers counts the padding, and takes no position_ids",
    "late places": "MusicGen: with padding on the left, ours counts real steps; transformers counts the padding, too",
    "by length": "a rotary scaling that depends on the length takes each row's; transformers takes the longest row's",
    "capacity": "padding takes no place at an expert; in transformers padding on the left does",
    "blocks": "block-sparse attention lays each row out by its real tokens; transformers the batch, padding included",
    "dropped masks": "ESM-2 scales a protein by its share of mask tokens; transformers counts padded ones, too",
    "convolution module": "the convolution of a Conformer's block sees 0 beyond the end of a sound; transformers its "
    "padding",
    "batch norm": "a batch norm before the convolution of positions moves transformers' padding off 0; here it is 0",
    "group norm": "the norm over time of a sound takes its own frames; transformers takes the padded ones, too",
    "codec": "a sound ends with its own last sample: convolutions, norms and loudness of a codec see no padding; in "
    "transformers they do",
    "biased convolution": "Mamba or Mamba-2 with a bias before its convolution: with padding on the left, transformers "
    "lets the bias of the padding into the first tokens; ours leaves no trace of it. No published size has that bias",
    "delays": "auto-correlation: each row has its own delays; transformers takes those of the batch's mean in training"
    ", and in evaluation mixes up those of all rows. So its layers are given one row after another",
    "end token": "ESMFold with padding on the left: transformers writes the end token of its language model over a "
    "residue; ours behind the last one",
    "unseen": "a window of a series without any observed value has the scale 1; transformers takes that of other rows",
}


def deviates(subject: Subject, lengths: list[int], side: str, value: Tensor) -> str | None:
    """The entry of `DEVIATIONS` that applies to an output of this shape on a padded batch, or None."""
    parts = [v for _, v in subject.recipe.walk() if isinstance(v, Recipe)]
    if side != "right" and value.ndim == 2:
        return "pooled"
    if (
        side != "right"
        and (subject.has_source or subject.holds(Objects))
        and any(p.part in (Learned, Sinusoidal) for p in parts)
    ):
        return "places"
    if side != "right" and any(p.part is CosinePlaces for p in parts):
        return "late places"
    if len(set(lengths)) > 1 and any(p.part is Rotary and p.scaling and p.scaling.by_length for p in parts):
        return "by length"
    if side != "right" and any(p.part is TopK and p.capacity for p in parts):
        return "capacity"
    if (side != "right" or len(set(lengths)) > 1) and any(p.part is BlockSparse for p in parts):
        return "blocks"
    if side != "right" and any(p.part is Stem for p in parts):
        return "end token"
    if len(set(lengths)) > 1 and any(p.part is ProteinTokens and p.hidden is not None for p in parts):
        return "dropped masks"
    if len(set(lengths)) > 1 and any(p.part is ConvModule for p in parts):
        return "convolution module"
    if len(set(lengths)) > 1 and any(p.part is NormedPositions for p in parts):
        return "batch norm"
    if len(set(lengths)) > 1 and any(p.part is Waves and p.norm == "group" for p in parts):
        return "group norm"
    if any(p.part is SoundEncoder for p in parts):
        return "codec"
    if side != "right" and any(p.part in (Mamba, Mamba2) and p.bias for p in parts):
        return "biased convolution"
    return None

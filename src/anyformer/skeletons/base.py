"""How streams connect: `Encoder`, `CausalLM`, `EncoderDecoder`, each a front-end, blocks and heads.

B batch, T time, S source time, D width, V vocabulary, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from anyformer.core.documents import places
from anyformer.core.flow import Flow
from anyformer.core.mixer import Mixer, start_state
from anyformer.core.state import State
from anyformer.core.taps import Taps

if TYPE_CHECKING:
    from pathlib import Path


@dataclass
class Output:
    """What a skeleton returns. `logits` is the first head's output; `heads` holds all of them by name."""

    hidden: Tensor  # (B, T, D) after the last norm
    logits: Tensor | None = None
    heads: dict[str, Tensor] = field(default_factory=dict)
    pooled: Tensor | None = None  # (B, D)
    memory: Tensor | None = None  # (B, S, D) what the encoder made
    aux: dict[str, Tensor] = field(default_factory=dict)  # auxiliary losses
    keep: Tensor | None = None  # (B, T) which places of `hidden` are real; None = all
    figures: dict[str, list[Tensor]] = field(default_factory=dict)  # what parts report in training, one tensor a layer


class Skeleton:
    """What every complete model has beside its modules: its own width, and where it came from.

    Attributes:
        recipe: the expression that this model is.
        page, config: the page and its hyperparameters, where the model came from one.
        origin: what a file said beside the weights (config keys that change nothing here, generation defaults), kept
            for `save`.
        tokenizer: an `anyformer.hub.text.tokenizer.Tokenizer`, or None.
        processor: an `anyformer.hub.processors.Processor`, which makes inputs of pictures, or None.
        ledger: how each tensor and config key of the file was used, where the model was loaded.
    """

    closed: ClassVar[bool] = True
    generates: bool = False  # can continue a text: has `start` and a vocabulary head
    takes: str = "input_ids"  # its main input: input_ids or pixel_values
    page: str | None = None
    config: Any = None
    origin: dict[str, Any] | None = None
    tokenizer: Any = None
    processor: Any = None
    ledger: Any = None
    taps: Taps | None = None
    context: int | None = None

    def begin(
        self,
        embed: Any,
        inputs: Tensor,
        mask: Tensor | None,
        positions: Tensor | None,
        state: State | None,
        documents: Tensor | None = None,
    ) -> Flow:
        """The flow of one pass over `inputs`: checks the length, joins the padding, places the tokens."""
        batch, count = inputs.shape[0], embed.length(inputs)
        first = 0 if state is None else state.length
        if self.context is not None and first + count > self.context:
            raise ValueError(
                f"{first + count} tokens do not fit the context of {self.context}; give fewer tokens, "
                f"or build with a longer one: recipe.but(context={first + count})"
            )
        if documents is not None:
            assert isinstance(self, nn.Module)
            check_packed(self, documents, inputs, mask, positions, state)
            apart, real = places(documents), documents >= 0
            return Flow(apart, keep=real, documents=documents, taps=self.taps, unembed=embed.unembed)
        keep = None if mask is None else mask.bool()
        if keep is not None and keep.shape not in ((batch, count), (batch, first + count)):
            raise ValueError(
                f"the attention mask must be (batch, tokens) = ({batch}, {count}), got {tuple(keep.shape)}"
            )
        if state is not None:
            keep = state.advance(keep, batch, count)
        if positions is None:
            if keep is None:
                positions = torch.arange(first, first + count, device=inputs.device)  # (T,)
            else:
                positions = (keep.long().cumsum(1) - 1).clamp(min=0)[:, first:]  # (B, T)
        return Flow(positions, first=first, keep=keep, state=state, taps=self.taps, unembed=embed.unembed)

    def start(self, batch: int, length: int = 0) -> State:
        """Empty decoding state for `batch` rows; `length` is a hint of how long they will become."""
        if not self.generates:
            raise ValueError(f"{type(self).__name__} sees both directions and does not decode step by step")
        assert isinstance(self, nn.Module)
        return start_state([self], batch, length)

    def generate(self, *args: Any, **options: Any) -> Any:
        """Continues text or token ids: `anyformer.generate.generate(self, ...)`."""
        from anyformer.generate import generate

        return generate(self, *args, **options)

    def save(self, folder: str | Path, overwrite: bool = False) -> str:
        """Writes a Hugging Face directory: `anyformer.hub.save(self, folder)`."""
        from anyformer.hub import save

        return save(self, folder, overwrite=overwrite)


def _embed(embed: Any, inputs: Tensor, flow: Flow) -> Tensor:
    """The front-end, with an error that names the id when one is outside the vocabulary."""
    try:
        return embed(inputs, flow)
    except IndexError:
        bad = inputs[(inputs < 0) | (inputs >= getattr(embed, "vocab", 0))]
        if not hasattr(embed, "vocab") or not len(bad):
            raise
        raise ValueError(
            f"token id {int(bad[0])} is outside the vocabulary: ids go from 0 to {embed.vocab - 1}"
        ) from None


def check_packed(
    model: nn.Module, document_ids: Tensor, inputs: Tensor, mask: Tensor | None, positions: Tensor | None, state: object
) -> None:
    """Raises ValueError, naming what it is, unless this model can keep these documents apart."""
    if document_ids.shape != inputs.shape:
        raise ValueError(
            f"document_ids must be (batch, tokens) = {tuple(inputs.shape)}, got {tuple(document_ids.shape)}"
        )
    others = {"attention_mask": mask, "position_ids": positions, "state": state}
    for name in (n for n, value in others.items() if value is not None):
        raise ValueError(
            f"document_ids and {name} cannot be given together: the ids say what is padding (-1), places begin again "
            "in each document, and decoding continues one text a row"
        )
    for part in (m for m in model.modules() if isinstance(m, Mixer) and not m.packs):
        raise ValueError(
            f"{type(part).__name__} cannot keep packed documents apart; give one document a row, with attention_mask"
        )

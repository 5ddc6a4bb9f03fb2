"""Decoders of pictures by their codes. B batch, T places of a text and of the codes after it, V ids of both."""

from __future__ import annotations

from typing import Any

from anyformer.core.front import FrontEnd
from anyformer.core.recipe import Recipe
from anyformer.core.slots import Norm
from anyformer.parts.positions import RelativeBias
from anyformer.parts.text_and_codes import OneMedium
from anyformer.skeletons.autoencoder import Autoencoder
from anyformer.skeletons.decoder import CausalLM


class Drawer(CausalLM):
    """A decoder that writes the codes of a picture after its text (DALL-E), with the autoencoder of these codes.

    ```
    input_ids (B, T) -> CausalLM -> logits (B, T, V)            coder: pictures <-> codes
    ```
    The coder learned before: no pass computes with it, and training leaves it as it is.

    Args:
        head: `OneMedium.of(...)`, which says where the text ends.
        coder: the autoencoder of its codes, or None. embed, blocks, norm, bias, context: of `CausalLM`.

    Raises:
        ValueError: for a coder with another number of codes than the head says.
    """

    def __init__(
        self,
        dim: int,
        embed: Recipe[FrontEnd],
        blocks: Any,
        norm: Recipe[Norm] | None,
        head: Recipe[OneMedium],
        bias: Recipe[RelativeBias] | None = None,
        context: int | None = None,
        coder: Recipe[Autoencoder] | None = None,
    ):
        super().__init__(dim, embed, blocks, norm, head, bias, context)
        self.coder = None if coder is None else coder.build()
        if self.coder is not None:
            self.fits(self.coder)

    @property
    def processed(self) -> tuple[str, ...]:
        return (*self.inputs(), *(() if self.coder is None else self.coder.inputs()))

    @property
    def spelled(self) -> int:
        return int(self.head.codes) - self.places

    @property
    def places(self) -> int:
        """Those of a text."""
        return int(self.head.first) - 1

    def fits(self, coder: Autoencoder) -> None:
        """Raises ValueError for an autoencoder whose codes this decoder does not say."""
        said, there = self.embed.vocab - self.head.codes, coder.codes.table.num_embeddings
        if said != there:
            raise ValueError(f"the decoder says {said} codes of pictures, and its coder has {there}; they must agree")

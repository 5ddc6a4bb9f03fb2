"""Base of all skeletons: inputs by name, the flow of a pass, state, and the verbs of a model.

B batch, T time, S source time, D width, V vocabulary.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from anyformer.core import checks
from anyformer.core.documents import positions_in_documents
from anyformer.core.flow import Flow
from anyformer.core.front import Entrance, FrontEnd, Input, Inputs
from anyformer.core.mixer import OverTime, start_state
from anyformer.core.part import Part
from anyformer.core.shown import Shown
from anyformer.core.state import State
from anyformer.core.taps import Taps
from anyformer.core.value import nearest
from anyformer.parts.heads import Unembedding

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import ParamSpec, TypeVar

    from anyformer.core.recipe import Recipe
    from anyformer.generate.continuing import generate as generate_

    O = ParamSpec("O")
    T = TypeVar("T")


@dataclass
class Output:
    """The tensors that a skeleton returns. `logits` is the first head's output; `heads` holds all of them by name.

    `across` names the outputs whose entries belong to several rows at once, e.g. the similarities of a batch.
    """

    hidden: Tensor | None = None  # (B, T, D) after the last norm
    logits: Tensor | None = None
    heads: dict[str, Tensor] = field(default_factory=dict)
    pooled: Tensor | None = None  # (B, D)
    memory: Tensor | None = None  # (B, S, D) the encoder's
    aux: dict[str, Tensor] = field(default_factory=dict)  # auxiliary losses
    keep: Tensor | None = None  # (B, T) padding mask of `hidden`, True = real; None = all
    figures: dict[str, list[Tensor]] = field(default_factory=dict)  # metrics of parts in training, one tensor a layer
    across: frozenset[str] = frozenset()
    beside: dict[str, Tensor] = field(default_factory=dict)  # values without a part of their own: a window's scale
    maps: tuple[Tensor, ...] = ()  # (B, D, rows, columns) of each stage of a pyramid, before its cells are merged
    deep: tuple[dict[str, Tensor], ...] = ()  # in training, the heads of each earlier block of a decoder of queries


class Skeleton(nn.Module, Shown):
    """Base of complete models: their own width, their inputs by name, and their origin.

    Attributes:
        recipe: the recipe of this model.
        width: of its hidden states.
        page, config: the page and its hyperparameters, if the model came from one.
        origin: a dictionary of the file's other contents (config keys that change nothing here, generation
            defaults), kept for `save`; or None.
        tokenizer: an `anyformer.hub.text.tokenizer.Tokenizer`, or None.
        processor: an `anyformer.hub.processors.Processor`, which makes inputs of pictures, or None.
        noising: an `anyformer.hub.noising.Noising`, of a model that makes pictures of noise, or None.
        ledger: the use of each tensor and config key of the file, if the model was loaded.
    """

    closed: ClassVar[bool] = True
    generates: bool = False  # True if it can continue a text: it has `start` and a vocabulary head
    across: ClassVar[frozenset[str]] = frozenset()  # outputs whose entries belong to several rows at once
    pairs: ClassVar[frozenset[str]] = frozenset()  # outputs of pairs of positions, (B, T, T, …)
    alike: ClassVar[bool] = False  # True if it has towers with comparable vectors: `vectors` and `scale`
    static: ClassVar[frozenset[str]] = frozenset()  # axes of inputs that a program of `edge.export` fixes
    target: ClassVar[str] = ""  # the prefix of the inputs that decoding extends token by token
    lesson: ClassVar[tuple[int, float]] = (40, 2e-2)  # steps of AdamW, and their rate, that learn a batch by heart
    idle: ClassVar[frozenset[str]] = frozenset()  # parameters that multiply 0 by design, and never learn
    placeholders: frozenset[int] = frozenset()  # ids that stand for media in a text, and are never written
    width: int
    page: str | None = None
    config: Any = None
    origin: Any = None
    tokenizer: Any = None
    processor: Any = None
    noising: Any = None
    ledger: Any = None
    taps: Taps | None = None
    context: int | None = None

    if TYPE_CHECKING:  # a type checker sees the signatures of the constructor and of `anyformer.generate.generate`

        @classmethod
        def of(cls: Callable[O, T], *args: O.args, **options: O.kwargs) -> Recipe[T]: ...

        def __getattr__(self, name: str) -> Any: ...  # parts by their names

        generate = generate_
    else:

        def generate(self, *args, **options):
            """Continues text or token ids: `anyformer.generate.generate(self, ...)`."""
            from anyformer.generate import generate

            return generate(self, *args, **options)

    @abstractmethod
    def entrances(self) -> tuple[Entrance, ...]:
        """The front-ends with the prefixes of their inputs' names, the main one first."""

    def inputs(self) -> dict[str, Input]:
        """The tensors that the model reads, by name: their axes, the padded ones, the optional ones."""
        return {name: read for entrance in self.entrances() for name, read in entrance.inputs().items()}

    def longest(self, entrance: Entrance) -> int | None:
        """The most positions of an input, where the skeleton limits them; None = any."""
        return self.context

    @property
    def processed(self) -> tuple[str, ...]:
        """The names of the inputs that a processor makes: its own, and those of a model inside that only others ask."""
        return tuple(self.inputs())

    @property
    def takes(self) -> str:
        """The name of the main input."""
        return self.entrances()[0].front.main

    @property
    def reads_source(self) -> bool:
        """True if there is a source beside the text that it writes."""
        return bool(self.target)

    @property
    def reads_text(self) -> bool:
        """True if the main input is token ids."""
        return self.entrances()[0].front.vocab is not None

    @property
    def vocab(self) -> int | None:
        """The number of token ids that it reads or writes; None without text."""
        return next((e.front.vocab for e in reversed(self.entrances()) if e.front.vocab is not None), None)

    @property
    def spelled(self) -> int | None:
        """The number of ids that its tokenizer can have: `vocab`, where a text shares its table with nothing else."""
        return self.vocab

    def example(self, rows: int, sizes: Mapping[str, tuple[int, ...]], noise: torch.Generator) -> dict[str, Tensor]:
        """Random valid inputs, without padding masks.

        Args:
            sizes: by prefix of the entrance: tokens, or rows and columns of patches; the usual size by default.
        """
        made = {}
        for entrance in self.entrances():
            size = sizes.get(entrance.prefix) or entrance.front.sizes()[0]
            tensors = entrance.front.example(rows, size, noise)
            made.update({entrance.prefix + name: value for name, value in tensors.items()})
        return self.complete(made)

    def complete(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Example inputs with the tokens that the model needs in each row, such as an end token."""
        return inputs

    def inserts(self, inputs: Inputs) -> dict[str, Tensor]:
        """The inputs with an entry for each medium in place of one for each row: by name the row, the first position
        and the position behind the last one of every entry, (N, 3)."""
        return {}

    def room(self) -> int:
        """The positions that one medium of each kind takes inside a text, at its usual size."""
        return 0

    @property
    def decodes(self) -> bool:
        """True if it can continue from a state, step by step, as every model that writes text."""
        return self.generates

    def check_inputs(self, inputs: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
        """The inputs of a call that are not None.

        Raises:
            ValueError: for one that no part reads, with the nearest names.
        """
        present = {name: value for name, value in inputs.items() if value is not None}
        known = self.inputs()
        for name in present:
            if name not in known:
                reads = "; ".join(f"{n} {read}" for n, read in known.items())
                raise ValueError(f"no part of this model reads {name!r}{nearest(name, list(known))}; it reads {reads}")
        return present

    def begin(
        self,
        entrance: Entrance,
        inputs: Inputs,
        positions: Tensor | None = None,
        state: State | None = None,
        documents: Tensor | None = None,
        causal: bool = False,
    ) -> tuple[dict[str, Tensor], Flow]:
        """The inputs of one entrance and the flow of the pass over them: checks names, lengths, padding, positions."""
        front, tensors = entrance.front, entrance.given(inputs)
        main = next(iter(tensors.values()))
        batch, count, first = main.shape[0], front.length(tensors), 0 if state is None else state.length
        limit = self.longest(entrance)
        if limit is not None and first + count > limit:
            raise ValueError(
                f"{first + count} tokens do not fit the context of {limit}; give fewer tokens, "
                f"or build with a longer one: recipe.but(context={first + count}), load(..., context={first + count})"
            )
        mask = tensors.get(front.mask) if front.mask else None
        if documents is not None:
            check_packed(self, documents, main, mask, positions, state)
            flow = Flow(
                positions_in_documents(documents),
                causal=causal,
                keep=documents >= 0,
                documents=documents,
                taps=self.taps,
            )
        else:
            keep = None if mask is None else self._keep(entrance, mask, tensors, batch, first)
            if state is not None:
                keep = state.advance(keep, batch, count)
            if positions is None:
                positions = front.locate(keep, first, count, main.device)
            else:
                positions = checks.position_ids(positions, batch, count, None if keep is None else keep[:, -count:])
            flow = Flow(positions, first=first, causal=causal, keep=keep, state=state, taps=self.taps)
        if front.unembed is not None:
            flow.put(Unembedding(front.unembed))
        return tensors, flow

    def _keep(self, entrance: Entrance, mask: Tensor, tensors: Inputs, batch: int, first: int) -> Tensor:
        """The checked padding mask of the positions: of this call, or of all so far."""
        front = entrance.front
        units = front.units(tensors)
        seen = first * units // front.length(tensors) if first and units else 0
        keep = checks.attention_mask(mask, batch, (units, seen + units), str(entrance.mask))
        check_gaps(self, keep, str(entrance.mask))
        return front.keep(keep, tensors)

    def start(self, batch: int, length: int = 0) -> State:
        """Empty decoding state for `batch` rows; `length` is a hint of their final length."""
        if not self.decodes:
            raise ValueError(f"{type(self).__name__} sees both directions and does not decode step by step")
        return start_state(self.decoding(), batch, length)

    def decoding(self) -> Iterable[nn.Module]:
        """The modules that decode step by step: all but front-ends and the models inside this one."""
        return [m for m in self.children() if not isinstance(m, Skeleton | FrontEnd)]

    def opening(self, ids: Tensor, mask: Tensor | None) -> tuple[dict[str, Any], Tensor, Tensor | None]:
        """The source inputs of a prompt (B, T), and the ids and the mask of the text that decoding extends."""
        return {}, ids, mask

    def encode(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, **inputs: Tensor | None
    ) -> Tensor:
        """Hidden states (B, T, D) of the main input: of an encoder-decoder, its memory."""
        return self(input_ids=input_ids, attention_mask=attention_mask, **inputs).hidden  # type: ignore[operator]

    def save(self, folder: str | Path, overwrite: bool = False) -> str:
        """Writes a Hugging Face directory: `anyformer.hub.save(self, folder)`."""
        from anyformer.hub import save

        return save(self, folder, overwrite=overwrite)


def embed_inputs(front: FrontEnd, tensors: Inputs, flow: Flow) -> Tensor:
    """The stream (B, T, D) after a front-end; an id outside its tables is an error that names it."""
    try:
        return front(tensors, flow)
    except IndexError:
        front.check_ids(tensors)
        raise


def check_gaps(model: Any, keep: Tensor, name: str) -> None:
    """Raises ValueError for padding in the middle of a text, if a part of the model would count it as text."""
    if not checks.readable(keep) or isinstance(keep.shape[1], torch.SymInt):
        return
    ends = keep[:, :-1] & ~keep[:, 1:]
    later = keep.flip(1).cummax(1).values.flip(1)[:, 1:]  # (B, T - 1) True if a real token is here or later
    gaps = (ends & later).any()
    if keep.device.type == "cpu" and not gaps:  # known at once, where a walk over the model takes longer
        return
    counting = next((m for m in model.modules() if isinstance(m, Part) and not m.skips_gaps()), None)
    if counting is not None and bool(gaps):
        raise ValueError(
            f"{name} has padding in the middle of a text, and {type(counting).__name__} counts positions or carries a "
            "state from token to token: it would read the gap as text; put padding on the left or on the right"
        )


def check_packed(
    model: nn.Module, document_ids: Tensor, inputs: Tensor, mask: Tensor | None, positions: Tensor | None, state: object
) -> None:
    """Raises ValueError, naming the cause, unless this model can separate these documents."""
    if document_ids.shape != inputs.shape:
        raise ValueError(
            f"document_ids must be (batch, tokens) = {tuple(inputs.shape)}, got {tuple(document_ids.shape)}"
        )
    others = {"attention_mask": mask, "position_ids": positions, "state": state}
    for name in (n for n, value in others.items() if value is not None):
        raise ValueError(
            f"document_ids and {name} exclude each other: document_ids mark padding (-1), positions begin again in "
            "each document, and decoding continues one text a row"
        )
    for part in (m for m in model.modules() if isinstance(m, OverTime) and not m.packs):
        raise ValueError(
            f"{type(part).__name__} cannot keep packed documents apart; give one document a row, with attention_mask"
        )

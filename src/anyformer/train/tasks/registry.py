"""Which task a model can be trained on, and the tokens that a task needs.

| task     | skeleton          | learns to                                         | data                              |
|----------|-------------------|---------------------------------------------------|-----------------------------------|
| causal   | CausalLM          | say the next token                                | text                              |
| masked   | Encoder           | say hidden tokens (and, with `nsp`, what follows) | text                              |
| span     | EncoderDecoder    | say hidden spans (T5)                             | text                              |
| denoise  | EncoderDecoder    | say the text without noise (BART)                 | text                              |
| seq2seq  | EncoderDecoder    | say the target of a source                        | rows with `source` and `target`   |
| classify | Encoder           | name the class of a text                          | rows with `text` and `label`      |
| tag      | Encoder           | name the class of each word                       | rows with `words` and `labels`    |
| images   | Encoder, Pyramid  | name the class of an image                        | rows with `image` and `label`     |
| match    | DualTower         | find an image's text, and a text's image          | rows with `image` and `text`      |
| detect   | QueryDecoder      | find the things in a picture                      | COCO's JSON, or VOC's XML         |
| paint    | Denoiser, Painter | make an image of noise, by its class or its text  | rows with `image` and `label`, or |
|          |                   |                                                   | `image` and `text`                |
| draw     | Drawer            | write the codes of an image after its text        | rows with `image` and `text`      |
| compose  | Composer          | write the codes of a sound after its text         | rows with `sound` or `codes`, and |
|          |                   |                                                   | `text` or none                    |
| stage    | StagedLM          | write what one stage of a cascade says            | rows with `text`, `semantic` and  |
|          |                   |                                                   | `sound` or `codes`                |
| reconst… | Autoencoder       | say an image by codes, and the image again        | rows with `image`                 |
| reconst… | Codec             | say a sound by codes, and the sound again         | rows with `sound`                 |
| caption  | Spliced           | write the text of a picture                       | rows with `image` and `text`      |
| answer   | CrossEncoder      | answer a question about the objects in a picture  | rows with `question`, `features`, |
|          |                   |                                                   | `boxes` and `label`               |
| act      | Actor             | take the actions of episodes, by their returns    | rows that are episodes            |
| clone    | Actor             | the same without returns                          | rows that are episodes            |
| graphs   | Encoder           | say the value or the class of a graph             | rows with `nodes` and `edges`, or |
|          |                   |                                                   | `smiles`, and `label`             |
| forecast | Forecaster        | say what comes                                    | tables of time series             |
| retrieve | RagToken          | find passages, and answer from them               | rows with `question`, `answer`    |
| fold     | Folder            | place the atoms of a protein                      | PDB files                         |
| ctc      | Encoder of sound  | spell what is said                                | rows with `sound` and `text`      |
| contrast | Encoder of sound  | find hidden frames among others (wav2vec 2.0)     | rows with `sound`                 |
| units    | Encoder of sound  | name the clusters of hidden frames (HuBERT)       | rows with `sound`                 |

The first one of a skeleton is its default; a page may say another (`TASK = "denoise"`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from tokenizers import AddedToken, processors

from anyformer.core.pages import empty
from anyformer.core.recipe import Recipe
from anyformer.hub.text.tokenizer import Tokenizer
from anyformer.skeletons.actor import Actor
from anyformer.skeletons.autoencoder import Autoencoder
from anyformer.skeletons.codec import Codec
from anyformer.skeletons.composer import Composer
from anyformer.skeletons.cross_encoder import CrossEncoder
from anyformer.skeletons.decoder import CausalLM
from anyformer.skeletons.denoiser import Denoiser
from anyformer.skeletons.drawer import Drawer
from anyformer.skeletons.dual_tower import DualTower
from anyformer.skeletons.encoder import Encoder
from anyformer.skeletons.encoder_decoder import EncoderDecoder
from anyformer.skeletons.folder import Folder
from anyformer.skeletons.forecaster import Forecaster
from anyformer.skeletons.painter import Painter
from anyformer.skeletons.pyramid import Pyramid
from anyformer.skeletons.query_decoder import QueryDecoder
from anyformer.skeletons.retrieving import RagToken
from anyformer.skeletons.spliced import Spliced
from anyformer.skeletons.staged import StagedLM

FITS: dict[tuple[type, str], tuple[str, ...]] = {
    (CausalLM, "input_ids"): ("causal",),
    (Drawer, "input_ids"): ("draw",),
    (StagedLM, "input_ids"): ("stage",),
    (Composer, "input_ids"): ("compose",),
    (Encoder, "input_ids"): ("masked", "classify", "tag"),
    (Encoder, "pixel_values"): ("images",),
    (Encoder, "input_values"): ("ctc", "contrast", "units"),
    (Encoder, "input_features"): ("ctc",),
    (Encoder, "nodes"): ("graphs",),
    (Pyramid, "pixel_values"): ("images",),
    (EncoderDecoder, "input_ids"): ("span", "denoise", "seq2seq"),
    (DualTower, "pixel_values"): ("match",),
    (QueryDecoder, "pixel_values"): ("detect",),
    (Denoiser, "pixel_values"): ("paint",),
    (Painter, "pixel_values"): ("paint",),
    (Spliced, "input_ids"): ("caption", "causal"),
    (CrossEncoder, "input_ids"): ("answer",),
    (Autoencoder, "pixel_values"): ("reconstruct",),
    (Codec, "input_values"): ("reconstruct",),
    (Actor, "states"): ("act", "clone"),
    (Forecaster, "past_values"): ("forecast",),
    (RagToken, "input_ids"): ("retrieve",),
    (Folder, "input_ids"): ("fold",),
}
TUNED = {  # else as FITS
    (CausalLM, "input_ids"): ("write",),
    (Encoder, "input_ids"): ("classify", "tag", "embed"),
    (Spliced, "input_ids"): ("caption", "write"),
}


@dataclass(frozen=True)
class Kind:
    """A task, as its data, its model and the commands beside it see it.

    Attributes:
        verb: of the command that uses the model of a run.
        columns: of rows; the first that fit. Empty: its data are no rows.
        text: it needs a tokenizer. media: its examples have an image, a sound or a clip.
        shown: its verb is given a picture of the rows.
        roles: special tokens of a tokenizer that is made for it. around: those around a text.
        head: its name in pages with several heads.
    """

    verb: str
    columns: tuple[tuple[str, ...], ...] = ()
    text: bool = True
    media: bool = False
    shown: bool = False
    roles: Mapping[str, str] = field(default_factory=dict)
    around: tuple[str, str] | None = None
    head: str | None = None


ROUND = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"}
BOTH = ("[CLS]", "[SEP]")
WRITTEN = (("messages",), ("prompt", "response"), ("source", "target"), ("text",))
KINDS = {
    "causal": Kind("generate"),
    "masked": Kind("embed", roles={**ROUND, "mask_token": "[MASK]"}, around=BOTH),
    "span": Kind("generate"),
    "denoise": Kind("generate", roles={"mask_token": "[MASK]"}),
    "write": Kind("generate", WRITTEN),
    "seq2seq": Kind("generate", (("source", "target"), ("prompt", "response"))),
    "embed": Kind("embed", (("anchor", "positive"),)),
    "tag": Kind("tag", (("words", "labels"),), roles=ROUND, around=BOTH, head="tag"),
    "images": Kind("classify", (("image", "label"),), text=False, media=True, shown=True, head="classify"),
    "match": Kind("classify", (("image", "text"),), media=True, shown=True),
    "paint": Kind("paint", (("image", "label"), ("image", "text")), media=True),
    "draw": Kind("paint", (("image", "text"),), media=True),
    "compose": Kind("compose", (("sound", "text"), ("codes", "text"), ("sound",), ("codes",)), media=True),
    "stage": Kind("inspect", tuple(("text", "semantic", *more) for more in (("sound",), ("codes",), ())), media=True),
    "caption": Kind("caption", (("image", "prompt", "response"), ("image", "text")), media=True, shown=True),
    "classify": Kind("classify", (("text", "label"),), roles=ROUND, around=BOTH, head="classify"),
    "ctc": Kind("transcribe", (("sound", "text"),), media=True),
    "answer": Kind("answer", (("question", "features", "boxes", "label"),), roles=ROUND, around=BOTH, head="answer"),
    "reconstruct": Kind("paint", (("image",), ("sound",)), text=False, media=True, shown=True),
    "contrast": Kind("finetune", (("sound",),), text=False, media=True, head="pretrain"),
    "units": Kind("finetune", (("sound",),), text=False, media=True, head="units"),
    "retrieve": Kind("ask", (("question", "answer"),), roles={**ROUND, "mask_token": "[MASK]"}),
    "detect": Kind("detect", text=False, media=True, head="detect"),
    "act": Kind("act", text=False),
    "clone": Kind("act", text=False),
    "forecast": Kind("forecast", text=False),
    "graphs": Kind("predict", text=False),
    "fold": Kind("fold", text=False),
}
WHOLE = {  # tasks that hold out examples by a rule of their own: what a row of a batch is
    "act": "windows of episodes",
    "clone": "windows of episodes",
    "forecast": "windows of series",
    "graphs": "whole graphs",
    "fold": "one protein a row",
}
COLUMNS = {task: kind.columns for task, kind in KINDS.items() if kind.columns}  # of the tasks learned from rows
OPTIONS = {  # of a run, that some tasks alone read
    "index": ("retrieve",), "refresh": ("retrieve",), "codes": ("draw", "compose", "stage"), "units": ("units",),
    "clusters": ("units",),
}  # fmt: skip
SENTINELS = 100
PICTURE = "<image>"  # the placeholder of a tokenizer that is made here, its last token


def _fits(tasks: dict[tuple[type, str], tuple[str, ...]], skeleton: type, takes: str) -> tuple[str, ...]:
    """The tasks of a skeleton, or of the one that it is a kind of (Reformer's, Longformer's)."""
    return next((tasks[kind, takes] for kind in skeleton.__mro__ if (kind, takes) in tasks), ())


def choose(task: str | None, name: str, recipe: Recipe, default: str | None = None) -> str:
    """The task that is asked for, or the default one.

    Raises:
        ValueError: for a task that this model cannot be trained on.
    """
    fits = _fits(FITS, recipe.part, empty(recipe).takes)
    task = task or default or next(iter(fits), None)
    if task not in fits:
        raise ValueError(
            f"{name} ({recipe.part.__name__}) cannot be trained on {f'the task {task!r}' if task else 'text or rows'}; "
            "it can on "
            f"{', '.join(fits) or 'none of the tasks'}. With your own batches: "
            "anyformer.train.fit(model, batches, objective, settings, out)"
        )
    return task


def check_options(options: Any, task: str) -> None:
    """Raises ValueError for an option that is given and that this task does not read."""
    for f in fields(options):
        given, tasks = getattr(options, f.name), OPTIONS.get(f.name, (task,))
        if task not in tasks and given != f.default:
            raise ValueError(
                f"{f.name}={given!r} is read by the task {' or '.join(tasks)}, and this run's is {task}: leave it out"
            )


def infer(task: str, name: str, model: Any, columns: Iterable[str]) -> tuple[str, tuple[str, ...]]:
    """Infers the fine-tuning task, and the columns that decide it, from the column names.

    Args:
        task: the one that is asked for, or auto.

    Raises:
        ValueError: if no task matches, or only ones that the model cannot do or `task` does not name.
    """
    has = set(columns)
    matching = {kind: next((c for c in options if has.issuperset(c)), ()) for kind, options in COLUMNS.items()}
    first = max(matching.values(), key=len)  # text and label are more specific than text
    matches = [kind for kind, options in matching.items() if options and (kind == task or options == first)]
    fits = _fits(FITS | TUNED, type(model), model.takes)
    if "detect" in fits:
        raise ValueError(
            f"{name} finds things in pictures, and learns from boxes, which are no columns of rows: data is a COCO "
            "file (set/annotations.json) or a folder of Pascal VOC's (set/*.xml)"
        )
    chosen = next((kind for kind in matches if kind in fits and task in ("auto", kind)), None)
    if chosen is None:
        known = sorted({" and ".join(map(repr, c)) for options in COLUMNS.values() for c in options})
        can = [kind for kind in fits if kind in COLUMNS or kind in WHOLE]
        problem = f"fit {' or '.join(matches)}" if matches else f"match no task: {', '.join(known)}"
        raise ValueError(
            f"{name} ({type(model).__name__}) can be tuned to {', '.join(can) or 'none of the tasks'}"
            f"{'' if task == 'auto' else f', task={task} is asked for'}, and the columns of the examples, "
            f"{', '.join(map(repr, sorted(has)))}, {problem}. Use `fields` to rename columns"
        )
    return chosen, matching[chosen]


def whole(task: str, model: Any) -> str | None:
    """The fine-tuning task of a model of episodes, series, graphs or proteins; None for other models and other tasks.

    Args:
        task: the one that is asked for, or auto: the first that fits.
    """
    fits = [kind for kind in _fits(FITS, type(model), model.takes) if kind in WHOLE]
    return next((kind for kind in fits if task in ("auto", kind)), None)


def of_boxes(task: str, name: str, model: Any) -> str:
    """The fine-tuning task for pictures with boxes.

    Raises:
        ValueError: if another task is asked for, or the model finds nothing.
    """
    if "detect" not in _fits(FITS, type(model), model.takes) or task not in ("auto", "detect"):
        asked = "" if task == "auto" else f", task={task} is asked for"
        raise ValueError(
            f"the data has boxes, which a detector learns (DETR); {name} ({type(model).__name__}) cannot{asked}"
        )
    return "detect"


def add_special_tokens(tokenizer: Tokenizer, task: str) -> Tokenizer:
    """A tokenizer that was made here, with the special tokens of a task, which it puts around a text."""
    kind = KINDS[task]
    roles = kind.roles
    names = [*roles.values(), *(sentinel(i) for i in range(SENTINELS) if task == "span")]
    tokenizer.core.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in names])
    if kind.text and task not in ("causal", "caption", "ctc", "draw", "compose", "stage", "retrieve"):
        begin, end = kind.around or ("", tokenizer.roles["eos_token"])
        one, two = f"{begin} $A {end}".strip(), f"{begin} $A {end} $B:1 {end}:1".strip()
        used = [(token, tokenizer.core.token_to_id(token)) for token in (begin, end) if token]
        tokenizer.core.post_processor = processors.TemplateProcessing(one, two, special_tokens=used)
    if task == "caption" and tokenizer.core.token_to_id(PICTURE) is None:
        return tokenizer.with_special(tokenizer.vocab_size, PICTURE)
    return Tokenizer(tokenizer.core, {**tokenizer.roles, **roles}, tokenizer.template, tokenizer.config)


def sentinel(number: int) -> str:
    """The spelling of the token for hidden span `number` in T5's tokenizers."""
    return f"<extra_id_{number}>"


def sentinels(tokenizer: Tokenizer) -> tuple[int, ...]:
    """The ids of the sentinels, in their order.

    Raises:
        ValueError: if the tokenizer has none.
    """
    ids: list[int] = []
    while (token := tokenizer.core.token_to_id(sentinel(len(ids)))) is not None:
        ids.append(token)
    if not ids:
        raise ValueError(f"the task span needs a tokenizer with sentinels {sentinel(0)}, {sentinel(1)} …; it has none")
    return tuple(ids)


def role(tokenizer: Tokenizer, task: str, name: str) -> int:
    """The id of a special token.

    Raises:
        ValueError: if the tokenizer has none.
    """
    number = tokenizer.role_id(name)
    if number is None:
        raise ValueError(f"the task {task} needs a tokenizer with a {name}, and this one has none")
    return number


def hiding(tokenizer: Tokenizer) -> tuple[int, int, int]:
    """The ids that hide tokens of a text: of its begin, of its end, and of the mask.

    Raises:
        ValueError: if the tokenizer lacks one.
    """
    begin, end, mask = (role(tokenizer, "masked", name) for name in ("cls_token", "sep_token", "mask_token"))
    return begin, end, mask

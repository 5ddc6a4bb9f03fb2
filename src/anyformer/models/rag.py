"""RAG (Lewis et al., 2020; arXiv:2005.11401). A generator that reads passages, which its own question finds.

Differs from BART and T5, one of which it holds, by: an encoder of the question (DPR's: BERT, the first token's vector);
K passages a question, found by the product of vectors; their relevance is a probability, and the answer's is a mean by
it, so the search learns from the answers alone. `task`: each word from any passage (token), or all words from one
(sequence).

```
question ── BERT ── first token ── (linear) ──┐
vectors of K passages, from an index ─────────┴── products ── softmax ── p(passage | question) ─────────────┐
passage 1 // question ── encoder ── memory ── decoder ── p(word | passage 1, words before) ──┐              │
  …                                              │                                           ├── mean by it ┴── p(word)
passage K // question ── encoder ── memory ── decoder ── p(word | passage K, words before) ──┘
```
With `documents`, the vectors are made by an encoder of passages that learns, too; published models freeze it.
"""

from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from anyformer.core import pages
from anyformer.core.recipe import Recipe
from anyformer.hub.tables import rag as tables
from anyformer.hub.tables.nested import within
from anyformer.hub.tables.weights import Hub
from anyformer.models._first import t5_sizes
from anyformer.models._tasks import choose
from anyformer.models.bart import Bart, bart
from anyformer.models.bert import Bert, BertBody, bert
from anyformer.models.t5 import T5, T5Body, t5
from anyformer.parts import Classifier, First
from anyformer.skeletons.retrieving import RagSequence, RagToken


@dataclass(frozen=True)
class Question(BertBody):
    width: int = 0  # of the vectors, by a linear layer; 0 = the first token's as it is


@dataclass(frozen=True)
class Rag:
    question: Question = field(default_factory=Question)
    bart: Bart | None = field(default_factory=Bart)
    t5: T5Body | None = None  # instead of bart
    task: str = "token"  # or sequence
    documents: bool = False  # an encoder of passages, like that of questions, learns with the model
    passages: int = 5  # that are retrieved
    longest: int = 300  # tokens of a passage with its question
    prefix: str = ""  # before: prefix title titled passage between question
    titled: str = " / "
    between: str = " // "


def rag(c: Rag) -> Recipe:
    if (c.bart is None) == (c.t5 is None):
        raise ValueError("RAG: exactly one of bart and t5 is its generator; the other one must be None")
    skeleton = choose("rag", "task", c.task, {"token": RagToken, "sequence": RagSequence})
    return skeleton.of(
        encoder(c.question),
        bart(c.bart) if c.bart is not None else t5(T5(**asdict(c.t5 or T5Body()))),
        encoder(c.question) if c.documents else None,
        passages=c.passages,
        longest=c.longest,
        prefix=c.prefix,
        titled=c.titled,
        between=c.between,
    )


def encoder(c: Question) -> Recipe:
    same = {name: value for name, value in asdict(c).items() if name != "width"}
    heads = {"vector": Classifier.of(classes=c.width)} if c.width else {}
    return bert(Bert(**same, task="none")).but({"pool": First.of(), "heads": heads})


_question = Question(dim=32, depth=2, heads=4, hidden=48, vocab=101, context=320)
_bart = Bart(dim=24, depth=2, decoder_depth=3, heads=3, hidden=40, vocab=128, context=64)
_t5 = T5Body(dim=24, depth=2, decoder_depth=2, heads=3, head_dim=6, hidden=40, vocab=128, buckets=8, far=20)
_small = Question(dim=128, depth=2, heads=4, hidden=512, vocab=1024, context=64)
SIZES = {
    "tiny": Rag(question=_question, bart=_bart, passages=3, longest=40),
    "mini": Rag(
        question=_small,
        bart=None,
        t5=T5Body(dim=128, depth=2, decoder_depth=2, heads=4, head_dim=32, hidden=512, vocab=1024),
        documents=True,
        longest=64,
    ),
    "nq": Rag(),
    "nq-sequence": Rag(task="sequence"),
}
PARAMETERS = {"tiny": 64_688, "mini": 2_123_008, "nq": 515_183_104, "nq-sequence": 515_183_104}
CASES = {
    "sequence": {"task": "sequence", "passages": 2},
    "T5": {"bart": None, "t5": _t5, "question.width": 20, "passages": 4},
    "odd": {
        "task": "sequence",
        "bart": None,
        "t5": T5Body(
            dim=30, depth=1, decoder_depth=1, heads=2, head_dim=8, hidden=20, vocab=99, gated=True, tied=False
        ),
        "question.dim": 30,
        "question.depth": 1,
        "question.heads": 3,
        "question.hidden": 20,
        "question.vocab": 77,
        "question.context": 310,
        "question.types": 1,
        "question.act": "relu",
        "question.eps": 1e-3,
        "passages": 1,
        "longest": 30,
        "prefix": "answer: ",
        "titled": " | ",
        "between": " || ",
    },
}


def first_weights(c: Rag) -> dict[str, float]:
    """The sizes of T5 in a generator of its kind; 0.02 elsewhere."""
    sides = ("question", *(["document"] if c.documents else []))
    plain = {f"{side}.blocks.*.{path}": 0.02 for side in sides for path in ("mixer.o", "ffn.down")}
    if c.t5 is None:
        return plain
    sizes = t5_sizes(c.t5.dim, c.t5.heads, c.t5.head_dim, c.t5.hidden) | {"head.proj": c.t5.dim**-0.5}
    return plain | {f"generator.{path}": size for path, size in sizes.items()}


def joined(question: Any, generator: Any, **options: Any) -> Any:
    """A model of a trained encoder and a trained generator, a new model of this page.

    Args:
        question: a BERT; with `documents=True` a copy of it becomes the encoder of passages. generator: BART or T5. Its
            tokenizer is the new model's; both must have been trained with it.
        options: hyperparameters of `Rag`.

    Raises:
        ValueError: for models of other pages.
    """
    if not isinstance(question.config, Bert) or not isinstance(generator.config, Bart | T5):
        raise ValueError(
            f"RAG joins a BERT with a BART or a T5; got {question.page or 'a recipe'} and "
            f"{generator.page or 'a recipe'}"
        )
    own = {f.name: getattr(question.config, f.name) for f in fields(Question) if f.name != "width"}
    held: Bart | T5 = generator.config
    if isinstance(held, Bart):
        c = Rag(question=Question(**own), bart=replace(held, offset=True), **options)
    else:
        writer = T5Body(**{f.name: getattr(held, f.name) for f in fields(T5Body)})
        c = Rag(question=Question(**own), bart=None, t5=writer, **options)
    model = pages.build(rag(c))
    model.page, model.config, model.tokenizer = "rag", c, generator.tokenizer
    encoder = {n: t for n, t in question.state_dict().items() if n.startswith(("embed.", "blocks."))}
    for part in (model.question, model.document) if c.documents else (model.question,):
        part.load_state_dict(encoder)
    model.generator.load_state_dict(generator.state_dict(), strict=c.bart is None)
    return model


HUBS = (
    Hub(
        "rag",
        architectures={
            "RagTokenForGeneration": {"task": "token", "documents": False},
            "RagSequenceForGeneration": {"task": "sequence", "documents": False},
        },
        settled=("task",),
        weights=tables.weights,
        ignore=tables.NO_BIASES,
        outputs={"doc_scores": "beside.scores", "passages": "beside.passages"},
        config=(
            within("question_encoder", "question", Question, *tables.DPR),
            tables.one_of("generator", bart=("bart", Bart, tables.BART), t5=("t5", T5Body, tables.T5)),
            *tables.ABOVE,
        ),
    ),
)

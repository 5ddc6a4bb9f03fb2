"""Text and token ids out of models, pictures out of noise, vectors and classes of texts and pictures, labels of words.

options.py       the options, checked
prompts.py       text, texts, ids, tensors -> rows of token ids, checked
constraining.py  texts that follow a schema, an expression or a grammar
sampling.py      scores -> the next token of each row
decoding.py      the loop: a batch, continued token by token; rows that are done leave it
speculating.py   several tokens a pass, by guesses that are verified
beam.py          the likeliest text as a whole
writing.py       tokens -> text, up to a stop string
continuing.py    `generate`, `stream`, `chat`
tools.py         functions that a model can call: schemas, the form of calls
calling.py       the loop of calls and results
calculator.py    a calculator for models
engine/          the steps of a model in ONNX Runtime
drawing.py       `draw`: texts to codes of pictures
cascade.py       the stages of MusicLM: text to semantic, coarse and fine codes
composing.py     `compose`: music after a text
recoding.py      `encode`, `decode`: sounds to the codes of a codec and back
embedding.py     `embed`
diffusion.py     pictures, or latents, out of noise: samplers
painting.py      `paint`: pictures of a class or a text; `repaint`: of codes
acting.py        `rollout`: episodes of an environment
classifying.py   `classify`
tagging.py       `tag`
detecting.py     `detect`: pictures to boxes
seeing.py        pictures, sounds and videos in prompts
captioning.py    `caption`, `ask`: texts about pictures
answering.py     `answer`: questions about the objects of pictures
transcribing.py  `transcribe`: sounds to text
folding.py       `fold`: the atoms of proteins
judging.py       `judge`: the value or the class of graphs
forecasting.py   `forecast`: what comes in a time series
speech.py        marks, languages and the grammar of times
timing.py        times of words
"""

from anyformer.generate.acting import rollout
from anyformer.generate.answering import answer
from anyformer.generate.captioning import ask, caption
from anyformer.generate.classifying import classify
from anyformer.generate.composing import compose
from anyformer.generate.continuing import chat, generate, stream
from anyformer.generate.detecting import detect
from anyformer.generate.drawing import draw, ranked
from anyformer.generate.embedding import embed
from anyformer.generate.folding import fold
from anyformer.generate.forecasting import backtest, forecast
from anyformer.generate.judging import judge
from anyformer.generate.painting import paint, repaint
from anyformer.generate.tagging import tag
from anyformer.generate.transcribing import transcribe

__all__ = [
    "answer", "ask", "backtest", "caption", "chat", "classify", "compose", "detect", "draw", "embed", "fold", "forecast",
    "generate", "judge", "paint", "ranked", "repaint", "rollout", "stream", "tag", "transcribe",
]  # fmt: skip

"""The scores above which something was found, for one index and its encoder.

64 everyday questions of many fields are asked of the new index. Most of them it cannot answer, so their best scores
say what a passage scores that is no answer. Limits: of the cosine the median of these scores plus three standard
deviations, estimated by 1.4826 median |x - median|, so that an index of recipes may answer some of them without moving
it; of the share of rare words and of BM25 the 95th percentiles, and at least half of the words. Something was found if
a passage reaches the first, or the other two together. An index about everything (a dictionary) has high limits: there
something like an answer is always near.
"""

from __future__ import annotations

import numpy as np

from anyformer.know.encoder import Encoder
from anyformer.know.searching import Searcher
from anyformer.know.store import Store

QUANTILE, DEVIATIONS = 0.95, 3.0
HALF = 0.5  # of a question's words: fewer are no match, however rare they are
QUESTIONS = (
    "How long does it take to boil an egg?", "Which river flows through Vienna?",
    "Who painted the ceiling of the chapel?",
    "How do I remove red wine from a carpet?", "What is the offside rule in football?", "When do tulips bloom?",
    "How many moons does Jupiter have?", "What is the capital of Mongolia?", "How do bees make honey?",
    "Can I take antibiotics with milk?", "Which gear should I use on a steep hill?", "Why do cats purr?",
    "How is parmesan cheese made?", "What does a violin cost?", "Who won the chess championship in 1972?",
    "How do I tie a bow tie?", "What causes the northern lights?", "When should tomatoes be planted?",
    "How deep is the Mariana Trench?", "Which vaccine do I need for a trip to Kenya?", "What is the plot of Hamlet?",
    "How do I train a puppy to sit?", "How much does an elephant weigh?", "Why is the sky blue?",
    "Who invented the telephone?", "What is the tax on inherited land?", "How do I knit a scarf?",
    "What is the melting point of gold?", "How are diamonds cut?", "Which muscles does rowing train?",
    "When was the Berlin Wall built?", "How do I get rid of moths in a wardrobe?", "What is a sonnet?",
    "How do glaciers move?", "Which wine goes with grilled fish?", "How long is a marathon?",
    "What are the symptoms of measles?", "How do I change a bicycle tyre?", "Who composed The Magic Flute?",
    "Why do leaves turn red in autumn?", "How often should a horse be shod?", "What is the longest bridge in China?",
    "How do volcanoes erupt?", "What does a notary do?", "How do I bake sourdough bread?",
    "Which planet is closest to the sun?", "How tall was Napoleon?", "What is the rule of thirds in photography?",
    "How do whales sleep?", "When does the train to Lisbon leave?", "What is the difference between jam and marmalade?",
    "How do I prune roses?", "Who wrote the song that was played at the wedding?", "What is a leap year?",
    "How do I treat a sunburn?", "Which language is spoken in Brazil?", "How fast can a cheetah run?",
    "What is the minimum wage in Ireland?", "How are pearls formed?", "What do hedgehogs eat in winter?",
    "How do I fold a paper crane?", "What happened in the last episode of the series?", "How is silk dyed?",
    "Which shoes are best for hiking in snow?",
)  # fmt: skip


def calibrate(store: Store, encoder: Encoder) -> dict[str, str]:
    """The limits of an index, as it stores them."""
    searcher = Searcher(store.folder, encoder)
    try:
        found = [searcher.search(question, 10).hits for question in QUESTIONS]
    finally:
        searcher.close()
    best = {name: [max(getattr(hit, name) for hit in hits) for hits in found] for name in ("cosine", "share", "bm25")}
    middle = float(np.median(best["cosine"]))
    spread = 1.4826 * float(np.median(np.abs(np.array(best["cosine"]) - middle)))
    share, bm25 = (float(np.quantile(best[name], QUANTILE)) for name in ("share", "bm25"))
    limits = {"cosine": middle + DEVIATIONS * spread, "share": max(share, HALF), "bm25": bm25}
    return {name: repr(value) for name, value in limits.items()}

"""Translation as in 2017: a small Transformer learns English to German, and is measured on texts that it has not seen.

    python examples/translation.py --out runs/translation

The texts are descriptions of Debian's packages, or the Debian Administrator's Handbook (`translation_texts/`; fetched
by apt, 20 and 35 MB). Training as in the paper: label smoothing 0.1, warm-up and inverse square root, Adam with
(0.9, 0.98), beam search. The results stand in docs/translation.md. Needs `pip install sacrebleu`.
"""

import argparse
import functools
import json
import random
from pathlib import Path

from translation_texts import parallel
from translation_texts.descriptions import descriptions

import anyformer as af
from anyformer.generate import generate
from anyformer.hub.text.tokenizer import Tokenizer
from anyformer.train import objectives
from anyformer.train.loop import Settings, fit

LONGEST = 120  # tokens of a side that is learned from
CONTEXT = 512  # sines reach any place


def ids(tokenizer, pairs):
    """Token ids of both sides, each with the token that ends it; pairs that are too long are left out."""
    end = tokenizer.role_id("eos_token")
    rows = [tuple([*tokenizer.encode(text), end] for text in pair) for pair in pairs]
    return [row for row in rows if max(map(len, row)) <= LONGEST]


def held_out_loss(model, batches):
    """The mean of -log p over the tokens of all batches, in nats."""
    total = count = 0.0
    for number in range(len(batches)):
        batch = batches(number)
        labels = batch.pop("labels")
        total += float(objectives.seq2seq(model(**batch), labels, 1.0))
        count += int(objectives.counted(labels))
    return total / count


def score(translations, references):
    """BLEU and chrF of sacrebleu, with its signatures."""
    import sacrebleu

    bleu, chrf = sacrebleu.BLEU(), sacrebleu.CHRF()
    values = {
        "bleu": bleu.corpus_score(translations, [references]).score,
        "chrf": chrf.corpus_score(translations, [references]).score,
    }
    return {name: round(value, 2) for name, value in values.items()}, [str(m.get_signature()) for m in (bleu, chrf)]


def translate(model, texts, beams, batch=32):
    """The texts in the other language; the longest first, so that little is padded."""
    order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
    out = [""] * len(texts)
    for start in range(0, len(order), batch):
        some = order[start : start + batch]
        prompts = [[*model.tokenizer.encode(texts[i]), model.begin_id] for i in some]
        outputs = generate(model, prompts, max_new_tokens=2 * LONGEST, num_beams=beams)
        for i, row in zip(some, outputs, strict=True):
            out[i] = model.tokenizer.decode(row)
    return out


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--out", default="runs/translation", help="folder of the run")
    options.add_argument("--corpus", choices=["descriptions", "handbook"], default="descriptions")
    options.add_argument("--language", default="de", help="of the target: de, fr, …; of the handbook: de-DE, …")
    options.add_argument("--steps", type=int, default=8000)
    options.add_argument("--dim", type=int, default=128)
    options.add_argument("--depth", type=int, default=3)
    options.add_argument("--vocab", type=int, default=4000)
    options.add_argument("--tokens", type=int, default=3072, help="places of a batch, source and target together")
    options.add_argument("--warmup", type=int, default=2000)
    options.add_argument("--score", type=int, default=1000, help="held-out pairs that are translated at the end")
    options.add_argument("--dropout", type=float, default=0.1)
    options.add_argument("--beams", type=int, default=4)
    o = options.parse_args()

    if o.corpus == "descriptions":
        blocks, held = descriptions(o.language)
    else:
        blocks, held = parallel.split(parallel.handbook(target=o.language))
    train, test = parallel.sentences(blocks), parallel.sentences(held)
    print(
        f"{len(blocks)} blocks to learn from, {len(train)} pairs; {len(held)} held out, {len(test)} pairs", flush=True
    )

    tokenizer = Tokenizer.train_bpe([text for pair in train for text in pair], o.vocab)
    model = af.build(
        "transformer", "base", seed=0, dim=o.dim, depth=o.depth, decoder_depth=o.depth, heads=4, hidden=4 * o.dim,
        vocab=tokenizer.vocab_size, context=CONTEXT, dropout=o.dropout, begin_id=tokenizer.role_id("eos_token"),
    )  # fmt: skip
    model.tokenizer = tokenizer
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
    batches = parallel.Batches(ids(tokenizer, train), o.tokens, model.begin_id)
    others = parallel.Batches(ids(tokenizer, test), o.tokens, model.begin_id)
    settings = Settings(
        steps=o.steps, lr=(o.dim * o.warmup) ** -0.5, warmup=o.warmup, schedule="inverse_sqrt", betas=(0.9, 0.98),
        weight_decay=0.0, eval_every=500, log_every=100,
    )  # fmt: skip
    print(f"{len(batches)} batches a round, {o.steps / len(batches):.1f} rounds", flush=True)
    fit(model, batches, functools.partial(objectives.seq2seq, label_smoothing=0.1), settings, o.out,
        measure=lambda m: held_out_loss(m, others))  # fmt: skip

    model.eval()
    sources, references = map(list, zip(*random.Random(0).sample(test, min(o.score, len(test))), strict=True))
    dictionary = parallel.Dictionary(train)
    by_method = {
        "copy of the source": sources,
        "word by word": [dictionary(text) for text in sources],
        "transformer, greedy": translate(model, sources, 1),
        f"transformer, {o.beams} beams": translate(model, sources, o.beams),
    }
    results = {}
    for name, texts in by_method.items():
        results[name], signatures = score(texts, references)
        print(f"{name:24} BLEU {results[name]['bleu']:5.2f}   chrF {results[name]['chrf']:5.2f}", flush=True)
    print(*signatures, sep="\n")
    best = by_method[f"transformer, {o.beams} beams"]
    rows = [{"source": s, "reference": r, "found": f} for s, r, f in zip(sources, references, best, strict=True)]
    Path(o.out, "scores.json").write_text(json.dumps({"scores": results, "texts": rows}, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()

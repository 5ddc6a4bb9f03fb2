"""Sound and folding beside the reference of each architecture, in float32.

Whisper base, with its real weights, writes five sentences (24 seconds, LibriVox) one after another, greedily, from
samples to text: beside transformers, and beside CTranslate2, which runs faster-whisper (`pip install ctranslate2`; it
gets the features and the tokens from here, and a beam of one). wav2vec 2.0 base and a Conformer of the same width (768,
12 layers, relative positions) read two rows of four seconds of noise, with random weights; a step is the mean square of
the outputs, forward and backward, in training mode with dropout 0, without an optimiser; ours runs as in `fit`, which
keeps freed memory for the next step (`core.machine.kept_memory`), peers run as they are. A block of AlphaFold 2 at its
published widths reads 32 rows of 64 residues, beside openfold3's (`pip install --no-deps openfold3==0.5.0
ml-collections absl-py gemmi biotite`).

Memory is what a process grew by in one pass of `PairUpdates` (width 128, 4 heads), without gradients, over L x L pairs,
beside the bytes of these pairs. How far a row of a padded batch is from the row alone: `python -m benchmarks.sound
padded`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

from benchmarks.contest import ROOT, THREADS, Missing
from benchmarks.duel import KINDS, duels, stepping
from benchmarks.report import Section, row

NAMES = {
    "whisper": "Whisper base, 24 s", "whisper2": "Whisper base, 24 s", "wav2vec2": "wav2vec 2.0 base, 2 x 4 s",
    "conformer": "Conformer, 2 x 4 s", "evoformer": "AlphaFold 2's block, 32 x 64",
}  # fmt: skip
PEERS = {
    "whisper": "transformers", "whisper2": "CTranslate2", "wav2vec2": "transformers", "conformer": "transformers",
    "evoformer": "openfold3",
}  # fmt: skip
RATE, ROWS, RESIDUES, LENGTHS = 16_000, 32, 64, (256, 512)
Serve = Callable[[dict[str, Any]], dict[str, Any]]


def build(key: str) -> tuple[dict[str, Any], Serve]:
    """Nothing to say beforehand, and the function that makes a pass or a step."""
    import torch

    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    side, _, name = key.partition("_")
    mine = side == "ours"
    if name.startswith("whisper"):
        return {}, writing(_whisper() if mine else _ctranslate2() if name == "whisper2" else _transformers())
    if name == "evoformer":
        return {}, stepping(*(_block() if mine else _openfold()), kept=mine)
    return {}, stepping(*_listener(name, mine), kept=mine)


def writing(write: Callable[[Any], str]) -> Serve:
    """The function that writes the five sentences; what was written is a part of its answer."""
    from anyformer.data.speech import clips
    from anyformer.media.sound import sound

    heard = [sound(clip.path).samples for clip in clips()]  # of 16,000 Hz

    def serve(request: dict[str, Any]) -> dict[str, Any]:
        began = time.perf_counter()
        texts = [write(samples) for samples in heard]
        return {"seconds": time.perf_counter() - began, "texts": texts}

    return serve


def _loaded() -> Any:
    import torch

    import anyformer as af
    from anyformer.data import sources

    return af.load(sources.get("whisper-base"), dtype=torch.float32)


def _whisper() -> Callable[[Any], str]:
    from anyformer.generate import transcribe

    model = _loaded()
    return lambda samples: transcribe(model, (samples, RATE), language="en").text


def _transformers() -> Callable[[Any], str]:
    import torch
    import transformers as t

    with tempfile.TemporaryDirectory() as folder:
        model = _loaded()
        model.save(folder)
        theirs = t.WhisperForConditionalGeneration.from_pretrained(folder).float().eval()
        extractor = t.WhisperFeatureExtractor.from_pretrained(folder)

    def write(samples: Any) -> str:
        given = extractor(samples, sampling_rate=RATE, return_tensors="pt", return_attention_mask=True)
        with torch.no_grad():
            ids = theirs.generate(given.input_features, attention_mask=given.attention_mask, language="en",
                                  task="transcribe", return_timestamps=True, do_sample=False)  # fmt: skip
        return str(model.tokenizer.decode(ids[0].tolist()))

    return write


def _ctranslate2() -> Callable[[Any], str]:
    try:
        import ctranslate2
    except ImportError:
        raise Missing("ctranslate2 is not installed") from None
    import numpy as np
    import torch

    from anyformer.data import sources

    model = _loaded()
    theirs = ctranslate2.models.Whisper(
        str(sources.get("whisper-base")), device="cpu", compute_type="float32", intra_threads=THREADS
    )
    begin = [model.tokenizer.core.token_to_id(t) for t in ("<|startoftranscript|>", "<|en|>", "<|transcribe|>")]

    def write(samples: Any) -> str:
        with torch.no_grad():
            features = model.processor([(samples, RATE)])["input_features"]
        told = ctranslate2.StorageView.from_array(np.ascontiguousarray(features.numpy()))
        found = theirs.generate(told, [begin], beam_size=1)
        return str(model.tokenizer.decode(found[0].sequences_ids[0]))

    return write


def _listener(name: str, mine: bool) -> tuple[Any, Callable[[], Any]]:
    """A model of sound, and the mean square of its hidden states on noise."""
    import torch

    noise = torch.randn(2, 4 * RATE, generator=torch.Generator().manual_seed(0))
    if mine:
        import anyformer as af

        off: dict[str, Any] = {"dropout": 0.0, "attention_dropout": 0.0, "layer_drop": 0.0}
        wide = {"dim": 768, "depth": 12, "heads": 12, "hidden": 3072} if name == "conformer" else {}
        page, size = af.page(name), "base" if name == "wav2vec2" else "rel-pos-large"
        known = set(vars(page.at(size)))
        model = af.build(name, size, seed=0, **wide, **{k: v for k, v in off.items() if k in known})
        return model, lambda: model(input_values=noise).hidden.square().mean()
    import transformers as t

    config = t.Wav2Vec2Config() if name == "wav2vec2" else _conformer_config(t)
    for key in ("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout", "layerdrop",
                "mask_time_prob", "conformer_conv_dropout"):  # fmt: skip
        setattr(config, key, 0.0)
    theirs = (t.Wav2Vec2Model if name == "wav2vec2" else t.Wav2Vec2ConformerModel)(config)
    return theirs, lambda: theirs(noise).last_hidden_state.square().mean()


def _conformer_config(t: Any) -> Any:
    return t.Wav2Vec2ConformerConfig(
        position_embeddings_type="relative", feat_extract_norm="layer", conv_bias=True, hidden_act="swish"
    )


def _tensors() -> tuple[Any, Any]:
    import torch

    noise = torch.Generator().manual_seed(0)
    return torch.randn(1, ROWS, RESIDUES, 256, generator=noise), torch.randn(
        1, RESIDUES, RESIDUES, 128, generator=noise
    )


def _block() -> tuple[Any, Callable[[], Any]]:
    """Our block, and the mean square of what it gives."""
    import torch

    from anyformer.core.flow import Flow
    from anyformer.parts.folding.attention import Lines
    from anyformer.parts.folding.blocks import ColumnAttention, EvoformerBlock, OuterProductMean, RowAttention
    from anyformer.parts.folding.front import Rows
    from anyformer.parts.folding.triangles import PairUpdates

    block = EvoformerBlock(256, 128, RowAttention.of(heads=8, head_dim=32), ColumnAttention.of(heads=8, head_dim=32),
                           OuterProductMean.of(hidden=32), PairUpdates.of(heads=4, head_dim=32))  # fmt: skip
    x, z = _tensors()
    flow = Flow(torch.arange(RESIDUES))
    flow.put(Rows(None, torch.ones(1, ROWS, dtype=torch.bool)))
    flow.put(Lines(128))  # as the page alphafold2 has it
    return block, lambda: sum(t.square().mean() for t in block(x, z, flow))


def _openfold() -> tuple[Any, Callable[[], Any]]:
    try:
        from openfold3.core.model.latent.evoformer import EvoformerBlock
    except ImportError:
        raise Missing("openfold3 is not installed") from None
    import torch

    block = EvoformerBlock(
        c_m=256, c_z=128, c_hidden_msa_att=32, c_hidden_opm=32, c_hidden_mul=128, c_hidden_pair_att=32, no_heads_msa=8,
        no_heads_pair=4, transition_type="relu", transition_n=4, msa_dropout=0.0, pair_dropout=0.0,
        no_column_attention=False, opm_first=False, fuse_projection_weights=False, inf=1e9, eps=1e-3,
    )  # fmt: skip
    x, z = _tensors()
    seen, pairs = torch.ones(x.shape[:3]), torch.ones(z.shape[:3])
    return block, lambda: sum(t.square().mean() for t in block(x, z, seen, pairs))


def growth(length: int) -> dict[str, float]:
    """Bytes that this process grows by in a pass over all pairs, and the bytes of the pairs."""
    import torch

    from anyformer.core.flow import Flow
    from anyformer.parts.folding.triangles import PairUpdates
    from benchmarks.machine import resident

    part = PairUpdates(128, heads=4, head_dim=32).eval()
    with torch.no_grad():
        part(torch.randn(1, 8, 8, 128), Flow(torch.arange(8)))  # first use
        z = torch.randn(1, length, length, 128)
        before, began = resident()["VmRSS"], time.perf_counter()
        part(z, Flow(torch.arange(length)))
    return {"bytes": resident()["VmHWM"] - before, "pairs": z.nbytes, "seconds": time.perf_counter() - began}


def padded() -> str:
    """The distance of a row of a padded batch from the row alone, of wav2vec 2.0 here and in transformers."""
    import torch

    samples, mask = torch.randn(2, 2 * RATE, generator=torch.Generator().manual_seed(0)), torch.ones(2, 2 * RATE)
    samples[1, RATE:], mask[1, RATE:] = 0, 0
    off: dict[str, float] = {}
    for side in ("ours", "transformers"):
        torch.manual_seed(0)
        model = _listener("wav2vec2", side == "ours")[0].eval()
        name = "hidden" if side == "ours" else "last_hidden_state"
        with torch.no_grad():
            together: Any = getattr(model(input_values=samples, attention_mask=mask.long()), name)
            alone: Any = getattr(model(input_values=samples[1:, :RATE]), name)
        apart = together[1, : alone.shape[1]] - alone[0]
        off[side] = float(apart.norm() / alone.norm())
    return (
        f"A second of noise in a batch padded to two, wav2vec 2.0 base, first weights: the hidden states are off by "
        f"{off['ours']:.1e} of their length here, by {off['transformers']:.2f} in transformers."
    )


def run(rounds: int = 6) -> Section:
    """The section of the report."""
    notes: list[str] = []
    rows, claims = duels(
        "sound", NAMES, PEERS, rounds, notes, lambda n: {"inference": False} if "whisper" in n else KINDS
    )
    table = [row("", "", "inference", "time / ours", "step", "time / ours"), *rows]
    paths = os.pathsep.join((str(ROOT), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")))
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": str(THREADS)}
    for length in LENGTHS:
        command = [sys.executable, "-m", "benchmarks.sound", str(length)]
        made = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, env=environment)
        grew = json.loads(made.stdout)
        sizes = " MB beside ".join(f"{grew[key] / 1e6:,.0f}" for key in ("bytes", "pairs"))
        notes.append(f"PairUpdates at L = {length}: {sizes} MB of pairs, {grew['seconds']:.1f} s.")
    notes.append(padded())
    return Section("Sound and folding", (__doc__ or "").strip(), table, claims, notes)


if __name__ == "__main__":
    if sys.argv[1:] == ["padded"]:
        print(padded())
    else:
        print(json.dumps(growth(int(sys.argv[1]))) if len(sys.argv) > 1 else run().markdown("this machine"))

"""The contract: checks that every architecture must pass, called by the tests and by `anyformer verify`.

check.py         a check and its cases                          report.py        `verify` and its table
subjects.py      every page, compositions, checkpoints          probe.py         inputs, outputs, 'the same'
oracle.py        the same model in transformers          diffusers.py    ... and in diffusers
mended.py        its faults, mended

The checks, by the items of the contract:
form.py          a page is short and explains itself            numbers.py       1, 2: the oracle's numbers, round trips
ledger.py        3: nothing is dropped or made up               hyper.py         4, 5: every option counts; known sizes
behaviour.py     6-8: padding, causality, decoding              kernels.py       9: every kernel
limits.py        10: exactly known limits                       training.py      11, 12: it trains, it describes itself
packing.py       6, 7: several documents in one row
features.py      13, 16: LoRA, 8 and 4 bits, export; 0 is 0     doors.py         14: tampered files
experts.py       7, 10, 11, 13: mixtures of experts
"""

from anyformer.contract import (  # noqa: F401  (each module enters its checks)
    behaviour,
    doors,
    dropout,
    experts,
    features,
    first,
    form,
    hyper,
    kernels,
    ledger,
    limits,
    long,
    losses,
    numbers,
    packing,
    precision,
    roles,
    training,
)
from anyformer.contract.check import CHECKS, Check, LeftOut, cases
from anyformer.contract.oracle import forget
from anyformer.contract.report import Report, verify
from anyformer.contract.subjects import Subject, checkpoint, compositions, subjects

__all__ = [
    "CHECKS",
    "Check",
    "LeftOut",
    "Report",
    "Subject",
    "cases",
    "checkpoint",
    "compositions",
    "forget",
    "subjects",
    "verify",
]

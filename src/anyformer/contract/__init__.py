"""What every architecture must pass, as functions. The tests call them; so does `anyformer verify`, on a
user's own model.

check.py         what a check is, and over what it runs         report.py      `verify` and its table
subjects.py      every page, compositions, checkpoints          probe.py       inputs, outputs, 'the same'
oracle.py        the same model in transformers

The checks, by the items of the contract:
form.py          a page is short and explains itself            numbers.py     1, 2: the oracle's numbers, round trips
ledger.py        3: nothing is dropped or made up               hyper.py       4, 5: every option counts; published sizes
behaviour.py     6-8: padding, causality, decoding              kernels.py     9, 10: all kernels, known limits
training.py      11, 12: it trains, and describes itself        features.py    13, 16: LoRA, int8, export; 0 is a value
doors.py         14: tampered files
"""

from anyformer.contract import form, numbers, ledger, hyper, behaviour, kernels, training, features, doors  # noqa: F401, I001
from anyformer.contract.check import CHECKS, Check, cases
from anyformer.contract.report import Report, verify
from anyformer.contract.subjects import Subject, checkpoint, compositions, subjects

__all__ = ["CHECKS", "Check", "Report", "Subject", "cases", "checkpoint", "compositions", "subjects", "verify"]

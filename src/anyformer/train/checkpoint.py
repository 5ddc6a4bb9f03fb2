"""Checkpoints that survive: complete or absent, and everything that a run needs to go on bit for bit.

```
runs/NAME/  log.csv  log.jsonl
            step-000100/    config.json  model.safetensors  tokenizer.json …     a model like any other, for af.load
                            training.safetensors     moments of the optimiser, states of the random generators, and
                                                     weights in float32, where the model's file is in half precision
                            (with adapters: adapter_config.json  adapter_model.safetensors, for peft)
                            training.json            step, settings, facts about the data, the best evaluation
                            ema/                     with `ema`: a model directory too, with the mean of the weights
            environment.json  curves.png  curves.html  statistics.jsonl  config.yaml: see `environment`, `plots`, `log`
```
A checkpoint is written to a hidden folder, flushed to the disk, and renamed: there is no moment at which `step-…` is
incomplete. Older ones are removed only after that.

Weights in parts are gathered on the main process: a model that is trained must fit the memory of one machine.
`torch.distributed.checkpoint` would write the parts, but such a folder is no model directory for `af.load` and
`transformers`.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from anyformer.hub import load
from anyformer.hub.formats.guard import atomic_write, read_json, sync_folder
from anyformer.hub.formats.safetensors import SafeTensors
from anyformer.train import adapters, lora, master_weights
from anyformer.train.distributed.base import World

TENSORS, FACTS = "training.safetensors", "training.json"
NAME = re.compile(r"step-\d{6,}")
# files of a run before its first checkpoint
FIRST = {"config.yaml", "recipe.json", "environment.json", "log.csv", "log.jsonl", "statistics.jsonl"}
FIRST |= {"tensorboard", "wandb"}


class Run:
    """The folder of a run, held by one process at a time. Use as a context manager.

    Args:
        folder: is made if missing.
        resume: False: the folder must be empty. True: go on from its last checkpoint. "auto": go on if there is one,
            else begin. A path: go on from that checkpoint, or the last one of that run.
        world: the processes of the run; the main one alone locks the folder and writes.

    Attributes:
        checkpoint: where to go on from, or None. `loaded`: the model that `model` has read from it.

    Raises:
        ValueError: if the folder holds a run and `resume` is False, holds none and it is True, or is in use.
        OSError: if the folder cannot be written.
    """

    def __init__(self, folder: str | Path, resume: bool | str | Path = False, world: World | None = None):
        self.folder = Path(folder).expanduser()
        self.lock: FileLock | None = None
        self.loaded: Any = None
        self.checkpoint: Path | None = (world or World()).on_main(lambda: self._open(resume))

    def model(self, given: Any = None) -> Any:
        """The model of the checkpoint, whose weights a loop does not read again.

        Args:
            given: that model, if it has been read before the folder was opened.
        """
        assert self.checkpoint is not None
        self.loaded = load(self.checkpoint) if given is None else given
        return self.loaded

    def _open(self, resume: bool | str | Path) -> Path | None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.lock = FileLock(self.folder / ".lock")
            self.lock.acquire(timeout=0)
        except Timeout:
            raise ValueError(f"{self.folder} is being written by another process; choose another out") from None
        except OSError as error:
            why = f"cannot write a run there: {error.strerror}; choose another out"
            raise OSError(error.errno, why, str(self.folder)) from error
        try:
            for left in self.folder.glob(".step-*"):  # by a save that was killed
                shutil.rmtree(left)
            return self._find(resume)
        except BaseException:
            self.lock.release()
            raise

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: Any) -> None:
        if self.lock is not None:
            self.lock.release()

    def _find(self, resume: bool | str | Path) -> Path | None:
        word = str(resume).lower()  # the command line gives texts
        last = latest(self.folder)
        held = {f.name for f in self.folder.iterdir()} - {".lock"}
        if word == "true":
            if last is None:
                raise ValueError(f"{self.folder} holds no checkpoint; resume='auto' begins where there is none")
            return last
        if word == "auto" and (last is not None or not held - FIRST):
            return last
        if word not in ("false", "auto") and last is not None:
            return self._given(Path(str(resume)).expanduser(), last)
        if held:
            content = f"a run, up to {last.name}" if last else f"other files ({', '.join(sorted(held)[:3])})"
            why = "it is not overwritten. Choose another out, or resume=true"
            raise ValueError(f"{self.folder} holds {content}: {why}")
        return None if word in ("false", "auto") else self._given(Path(str(resume)).expanduser(), None)

    def _given(self, path: Path, last: Path | None) -> Path:
        checkpoint = path if (path / FACTS).exists() else latest(path)
        if checkpoint is None:
            raise ValueError(f"resume: {path} is no checkpoint and no run: it has neither {FACTS} nor folders step-…")
        if last is not None and checkpoint.resolve() != last.resolve():
            raise ValueError(
                f"{self.folder} already continues to {last.name}; to continue from {checkpoint} choose another out"
            )
        return checkpoint

    def save(
        self,
        step: int,
        model: Any,
        weights: dict[str, Tensor],
        tensors: dict[str, Tensor],
        facts: dict[str, Any],
        keep: int,
        best: int | None,
        ema: dict[str, Tensor] | None = None,
        types: dict[str, torch.dtype] | None = None,
    ) -> None:
        """Writes `step-…`, then removes all but the newest `keep` and the one of the step `best`.

        Args:
            weights: the model's state dict, whole; the model itself may hold a part of each tensor.
            ema: the same with the running mean of the weights, for the folder `ema`.
            types: of the weights in model directories, see `train.master_weights`; adapters' files are not converted.

        Raises:
            OSError: if it cannot be written (a full disk); the older checkpoints are still there.
        """
        target = self.folder / f"step-{step:06d}"
        work = self.folder / f".{target.name}.tmp"
        types = {} if types is None or lora.adapters(model) else types
        for kind, whole in (("master", weights), ("mean", ema or {})):
            exact = {f"{kind}.{n}": t for n, t in whole.items() if types and t.is_floating_point()}
            tensors = {**tensors, **exact}  # all of them: `load` gives a file of several types one type
        try:
            adapters.save_model(model, work, master_weights.stored(weights, types))
            if ema is not None:
                adapters.save_model(model, work / "ema", master_weights.stored(ema, types))
                sync_folder(work / "ema")
            atomic_write(work / FACTS, (json.dumps({"step": step, **facts}, indent=2) + "\n").encode())
            save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, work / TENSORS)
            shutil.copymode(work / FACTS, work / TENSORS)  # safetensors' own would be for the owner alone
            sync_folder(work / TENSORS)
            sync_folder(work)
            os.rename(work, target)
            sync_folder(self.folder)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(work, ignore_errors=True)
            last = latest(self.folder)
            remaining = f"{last} is still there" if last else "there is no older one"
            number = getattr(error, "errno", None) or errno.EIO
            raise OSError(number, f"the checkpoint of step {step} was not written ({error}); {remaining}") from error
        for old in checkpoints(self.folder)[:-keep]:
            if old != self.folder / f"step-{best or 0:06d}":
                shutil.rmtree(old)


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    folders = [f for f in folder.glob("step-*") if NAME.fullmatch(f.name) and (f / FACTS).exists()]
    return sorted(folders, key=lambda f: int(f.name[5:]))


def latest(folder: Path) -> Path | None:
    """The newest checkpoint of a run, or None."""
    return (checkpoints(folder) or [None])[-1]  # type: ignore[list-item]


def resumed(out: str | Path | None, resume: bool | str | Path) -> Path | None:
    """The checkpoint that a run in `out` goes on from, or None; `Run` decides once it holds the folder."""
    word = str(resume).lower()
    if out is None or word == "false":
        return None
    path = Path(out if word in ("true", "auto") else str(resume)).expanduser()
    return path if (path / FACTS).exists() else latest(path)


def read(checkpoint: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The content of `training.json` and `training.safetensors`."""
    file = SafeTensors(checkpoint / TENSORS)
    return read_json(checkpoint / FACTS), {name: file.get(name) for name in file.names()}


@torch.no_grad()
def restore_weights(
    model: Any,
    checkpoint: Path,
    world: World | None = None,
    exact: dict[str, Tensor] | None = None,
    loaded: bool = False,
) -> None:
    """Copies the weights of a checkpoint into a model of the same shapes; of one with adapters, the trained ones.

    Args:
        world: may hold the model in parts.
        exact: weights in float32 that the model's file holds rounded.
        loaded: the model has the weights of the file already.

    Raises:
        ValueError: if the checkpoint is of another model.
    """
    world = world or World()
    if not loaded and adapters.restore(model, checkpoint, world):
        return
    saved = world.shard({**({} if loaded else load(checkpoint).state_dict()), **(exact or {})}, model.state_dict())
    try:
        model.load_state_dict(saved, strict=not loaded)
    except RuntimeError as error:
        raise ValueError(f"{checkpoint} holds another model: {' '.join(str(error).split())}") from None

"""What the tests of fine-tuning in several processes run in each of them, and alone: one job after another."""

import json
import sys
import warnings
from pathlib import Path

import torch
import torch.distributed as dist

from anyformer.train import finetune

torch.set_num_threads(1)


def job(**options):
    """One run. Every process is given the same options, as a launcher does."""
    common = {"steps": 20, "batch": 4, "accumulate": 2, "lr": 3e-3, "warmup": 2, "grad_clip": 0.5, "quiet": True}
    done = finetune(**{**common, **options})
    return {"before": done.before, "after": done.after, "kept": done.kept, "folder": str(done.folder)}


if __name__ == "__main__":
    warnings.simplefilter("error")
    dist.init_process_group("gloo")  # once for all jobs: a group that is there is used
    for line in json.loads(Path(sys.argv[1]).read_text()):
        said = job(**line)
        (Path(line["out"]) / f"said-{dist.get_rank()}.json").write_text(json.dumps(said))
    dist.destroy_process_group()

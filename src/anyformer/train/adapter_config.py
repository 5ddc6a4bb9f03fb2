"""adapter_config.json: read, compared with the tensors, and entered in the ledger."""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from anyformer.core.check import fit
from anyformer.hub.formats.guard import inside, read_json, refuse
from anyformer.hub.tables.config import Line

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
READ = {
    "peft_type", "r", "lora_alpha", "alpha_pattern", "rank_pattern", "use_rslora", "use_dora", "lora_dropout",
    "init_lora_weights", "target_modules", "modules_to_save",
}  # fmt: skip
QUIET = {  # given by the tensors, or used only while PEFT makes an adapter
    "auto_mapping", "base_model_name_or_path", "corda_config", "ensure_weight_tying", "eva_config", "exclude_modules",
    "fan_in_fan_out", "inference_mode", "layers_pattern", "layers_to_transform", "loftq_config", "lora_ga_config",
    "megatron_config", "megatron_core", "peft_version", "qalora_group_size", "revision",
    "runtime_config", "task_type",
}  # fmt: skip
KINDS: dict[str, Any] = {  # of the keys that something is computed with
    "r": int | None, "lora_alpha": float, "lora_dropout": float, "use_rslora": bool | None, "use_dora": bool | None,
    "alpha_pattern": dict[str, float] | None, "rank_pattern": dict[str, float] | None,
    "target_modules": list[str] | str | None, "modules_to_save": list[str] | None,
    "exclude_modules": list[str] | str | None, "layers_to_transform": list[int] | int | None,
}  # fmt: skip
PLAIN_STARTS = (True, False, "gaussian", "eva", "orthogonal", None)  # other first weights change the base model, too


def read_config(folder: Path) -> dict[str, Any]:
    """adapter_config.json, every key of which is known to mean nothing more than is done here."""
    path = inside(folder, CONFIG)
    config = read_json(path)
    if not isinstance(config, dict):
        raise refuse(path, "content", "a JSON object", config)
    if config.get("peft_type") != "LORA":
        raise refuse(path, "peft_type", "LORA", config.get("peft_type"))
    for key, value in config.items():
        if key not in READ | QUIET and value not in (None, False, "none", [], {}):
            raise refuse(path, key, "no value: the key is unknown and may change the function", value)
    if (start := config.get("init_lora_weights", True)) not in PLAIN_STARTS:
        raise refuse(
            path,
            "init_lora_weights",
            "true, false, gaussian, eva or orthogonal: others change the base model, too",
            start,
        )
    config = {"lora_alpha": 0, "lora_dropout": 0, **config}
    for key in KINDS.keys() & config:
        fit(config[key], KINDS[key], f"{path}: {key}")
    for key in ("alpha_pattern", "rank_pattern"):
        patterns = config.get(key) or {}
        config[key] = {_name(path, key, pattern): value for pattern, value in patterns.items()}
    return config


def _name(path: Path, key: str, pattern: str) -> str:
    """A pattern of PEFT's is a regular expression; those that are names are read, as files are not programs."""
    name = pattern.removeprefix("^").removesuffix("$").replace("\\", "")
    if not re.fullmatch(r"[\w.]+", name):
        raise refuse(path, key, "names of modules", pattern)
    return name


def alpha_of(config: dict[str, Any], name: str) -> float:
    alphas = [v for n, v in config["alpha_pattern"].items() if name == n or name.endswith(f".{n}")]
    return float(alphas[0] if alphas else config["lora_alpha"])


def compare(
    where: str,
    config: dict[str, Any],
    places: Collection[str],
    modules: Collection[str],
    parts: Collection[str],
    beside: Collection[str],
) -> None:
    """Compares the adapted and the whole modules of the config with those of the file.

    Args:
        places: the published names of the matrices that an adapter can stand at. modules: of all modules.
        parts: names of the adapted modules of the file. beside: of the tensors of its whole modules.

    Raises:
        ValueError: naming the module, if all tensors of one are lost.

    Warns:
        UserWarning: naming the modules, if a target is there in some layers only.
    """
    layers, skipped = config.get("layers_to_transform"), config.get("exclude_modules")
    layers = [layers] if isinstance(layers, int) else layers

    def asked(name: str, target: str) -> bool:
        numbers = [int(n) for n in re.findall(r"\.(\d+)\.", name)]
        here = not layers or not numbers or numbers[0] in layers
        out = isinstance(skipped, list) and any(_is(name, s) for s in skipped)
        return _is(name, target) and here and not out

    targets = config.get("target_modules")
    for target in targets if isinstance(targets, list) and not isinstance(skipped, str) else []:
        wanted = [name for name in places if asked(name, target)]
        lost = [name for name in wanted if name not in parts]
        if lost and len(lost) == len(wanted):
            raise ValueError(
                f"{where}: {CONFIG} adapts {target!r}, but {WEIGHTS} has no tensor of it; the file is incomplete"
            )
        if lost:
            warnings.warn(
                f"{where}: {target!r} is not adapted in {', '.join(lost[:5])}: {WEIGHTS} has none", stacklevel=3
            )
    for target in config.get("modules_to_save") or []:
        wanted = [name for name in modules if _is(name, target)]
        if wanted and not any(_is(name.rpartition(".")[0], target) or f".{target}." in f".{name}" for name in beside):
            raise ValueError(
                f"{where}: {CONFIG} saves {target!r} whole, but {WEIGHTS} has no tensor of it; the file is incomplete"
            )


def _is(name: str, target: str) -> bool:
    """Does a module's name end in the target?"""
    return name == target or name.endswith(f".{target}")


def account(config: Mapping[str, Any]) -> list[Line]:
    """The ledger of the keys of adapter_config.json."""
    why = "read from the tensors, or used only when an adapter is created"
    return [
        Line(key, value, *(("used", "how the adapter is read") if key in READ else ("ignored", why)))
        for key, value in config.items()
    ]

"""What each numeric setting may be. One table, checked where a setting is first used."""

from __future__ import annotations

from math import inf
from typing import Any

from bitgen.config import Config

ANY = (1, inf)
RANGES: dict[str, dict[str, tuple[float, float]]] = {  # smallest and largest allowed value
    "data": {"val_fraction": (0, 0.9), "captions_per_image": ANY, "crop_scale": (0.01, 1), "max_bad_fraction": (0, 1),
             "workers": (0, inf), "vocab_size": (257, inf), "limit": ANY, "scenes_train": ANY},
    "vision": {"patch_dropout": (0, 0.95), "image_size": (8, 2048), "mean": (-9, 9), "std": (0.001, 9)},
    "model": {"hidden_size": ANY, "text_layers": ANY, "decoder_layers": ANY, "num_heads": ANY,
              "intermediate_size": ANY, "max_tokens": (4, 4096), "vocab_size": (2, inf), "dropout": (0, 0.99),
              "fusion_layers": ANY, "memory_slots": (0, inf), "memory_noise": (0.01, inf), "memory_decay": (0, 1),
              "temperature": (0.01, inf), "gate_start": (0, inf)},
    "loss": {"itc": (0, inf), "itm": (0, inf), "text": (0, inf), "memory_kl": (0, inf), "label_smoothing": (0, 0.99),
             "queue_start": (0, inf), "queue": (0, inf), "momentum": (0, 1), "episode": ANY, "left_out": (0, 1),
             "chunk": ANY, "contrast_captions": ANY},
    "optim": {"lr": (0, inf), "vision_lr": (0, inf), "decoder_lr": (0, inf), "embedding_lr": (0, inf),
              "weight_decay": (0, inf), "warmup_steps": (0, inf), "clip": (1e-6, inf), "batch_size": ANY,
              "accumulation": ANY, "epochs": ANY, "betas": (0, 0.99999), "muon_momentum": (0, 0.99999),
              "max_steps": ANY, "patience": ANY, "min_delta": (0, inf), "max_skipped": ANY},
    "hub": {"push_every": ANY, "keep": ANY},
    "": {"seed": (0, 2**32 - 1), "save_every": ANY, "keep": ANY, "log_every": ANY, "validate_every": ANY},
}


def check_ranges(section: Any, name: str) -> None:
    """Raise `ValueError` for the first setting of `section` that is out of range, naming it, the value and the range.

    `name`: of the section in the configuration, such as `model`; empty for the settings at its root. None passes.
    """
    for key, (low, high) in RANGES[name].items():
        value = getattr(section, key)
        for each in value if isinstance(value, (tuple, list)) else (value,):
            if each is not None and not low <= each <= high:                      # written so that NaN fails
                wanted = f"at least {low}" if high == inf else f"between {low} and {high}"
                raise ValueError(f"{name}.{key}".removeprefix(".") + f" must be {wanted}, got {each}")


def check_config(config: Config) -> None:
    """`check_ranges` for every section of a run's configuration.

    A run folder without a name, which would be the current one, is a `ValueError` too.
    """
    if not config.output_dir.strip():
        raise ValueError(f"output_dir must name the run's folder, got {config.output_dir!r}")
    for name in RANGES:
        check_ranges(getattr(config, name) if name else config, name)

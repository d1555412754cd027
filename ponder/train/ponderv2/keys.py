"""The settings at the top of a PonderV2 config that something reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ponder.registry import nearest

_TASK = ("weight", "resume", "evaluate", "test_only", "seed", "save_path", "hooks", "train", "test", "test_epoch")
_AMOUNT = (
    "num_gpu", "num_worker", "batch_size", "batch_size_val", "batch_size_test", "epoch", "eval_epoch", "mix_prob",
    "max_point",
)  # fmt: skip
_MEANS = (
    "sync_bn", "enable_amp", "empty_cache", "find_unused_parameters", "param_dicts", "optimizer", "scheduler", "model",
    "data",
)  # fmt: skip
_OUR_OWN = ("amp_dtype", "accumulate", "max_bad_steps", "log_every", "save_every", "timeout")
KNOWN_KEYS = _TASK + _AMOUNT + _MEANS + _OUR_OWN
# Variables of PonderV2's files from which other settings are computed: a config written out still has them.
HELPERS = (
    "dataset_type", "data_root", "class_names", "num_classes", "num_cameras", "segment_ignore_index",
    "CLASS_LABELS_200",
)  # fmt: skip


def unknown_keys(config: Mapping[str, Any]) -> list[str]:
    """A sentence for each top-level key that nothing reads: neither the trainer nor the config file itself.

    Args:
        config: a config. If it has `helper_names`, as those of `load_config` have, these are the names that its file
            reads; a variable that other settings are computed from is thus not taken for a mistake.
    """
    helpers: frozenset[str] = getattr(config, "helper_names", frozenset())
    sentences = []
    for key in config:
        if key not in (*KNOWN_KEYS, *HELPERS) and key not in helpers:
            sentences.append(f"unknown key {key!r}: nothing reads it{nearest(key, KNOWN_KEYS)}")
    return sentences

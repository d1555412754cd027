"""Text embeddings of classes, and which of them belong to the labels of a dataset."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ponder.models.ponderv2.text_encoders import (
    TextError,
    encode_offline,
    encode_with_clip,
    plain,
    read_embeddings,
    unit,
)

PLACE = "[x]"

# Labels of S3DIS; PonderV2's configurations list these classes in another order. (The other datasets' agree.)
S3DIS_LABELS = (
    "ceiling", "floor", "wall", "beam", "column", "window", "door", "table", "chair", "sofa", "bookcase", "board",
    "clutter",
)  # fmt: skip


class TextTable(NamedTuple):
    """embedding [n_class, D] float32 unit rows; logit_scale, the logarithm of the scale, as CLIP has it; source."""

    embedding: Tensor
    logit_scale: float
    source: str


def make_text_table(
    class_names: Sequence[str],
    templates: str | Sequence[str],
    source: str = "offline",
    clip_model: str = "ViT-B/16",
    scrambled: bool = True,
) -> TextTable:
    """Embeddings of classes.

    A class has one prompt per template. A single template, given as a string, is its embedding; those of several are
    averaged. PonderV2 averages wrongly: it takes the prompts, which stand class after class, for standing template
    after template, so that row j is the mean of the prompts j, j + n_class, j + 2 n_class and so on.

    Args:
        class_names: the classes.
        templates: text with "[x]" where the name goes, or several.
        source: "offline" (from the words alone), "clip", or a path to a file (see `read_embeddings`) with a vector of
            every prompt, or of every class name, in which case there is nothing to average.
        clip_model: CLIP's name of the model.
        scrambled: average as PonderV2 does (`Parity.scrambled_templates`).

    Raises:
        TextError: the source is none of these or cannot serve, or a template lacks "[x]".
    """
    names = _texts(class_names, "class_name")
    single = isinstance(templates, str)
    forms = [templates] if isinstance(templates, str) else _texts(templates, "template")
    for form in forms:
        if PLACE not in form:
            raise TextError(f"template: expected {PLACE} where the class goes, got {form!r}")
    prompts = [form.replace(PLACE, name) for name in names for form in forms]
    if source == "offline":
        rows, scale, origin = encode_offline(prompts)
    elif source == "clip":
        rows, scale, origin = encode_with_clip(prompts, clip_model)
    else:
        file = read_embeddings(Path(source))
        found = file.lookup(prompts)
        if found is None:
            return _table_of_classes(names, file.lookup(names), file.logit_scale, source)
        rows, scale, origin = found, file.logit_scale, f"{source} (prompts)"
    if single:
        return TextTable(rows, scale, origin)
    if scrambled:
        means = rows.view(len(forms), len(names), -1).mean(0)
    else:
        means = rows.view(len(names), len(forms), -1).mean(1)
    return TextTable(unit(means), scale, origin)


def _texts(texts: Sequence[str], key: str) -> list[str]:
    if isinstance(texts, str) or not texts or not all(isinstance(text, str) for text in texts):
        raise TextError(f"{key}: expected a list of texts, got {texts!r}")
    return list(texts)


def _table_of_classes(names: list[str], rows: Tensor | None, logit_scale: float, source: str) -> TextTable:
    if rows is None:
        raise TextError(f"text source: {source} has neither all prompts nor all classes; classes: {', '.join(names)}")
    return TextTable(rows, logit_scale, f"{source} (classes)")


def class_rows(
    condition: str, valid_index: Sequence[int], class_name: Sequence[str], global_order: bool
) -> tuple[int, ...]:
    """Rows of the text table that belong to labels 0, 1, ... of a dataset.

    Args:
        condition: the dataset.
        valid_index: its classes, as numbers in `class_name`.
        class_name: the classes of all datasets.
        global_order: keep the order of `valid_index` (`Parity.class_rows_in_global_order`), which is not that of
            S3DIS's labels where it follows the list of all classes.

    Raises:
        ValueError: a number beyond the list, or S3DIS without its 13 classes where their order matters.
    """
    rows = tuple(int(row) for row in valid_index)
    if any(not 0 <= row < len(class_name) for row in rows):
        raise ValueError(f"valid_index: expected 0 to {len(class_name) - 1} for {condition}, got {list(rows)}")
    if global_order or condition != "S3DIS":
        return rows
    row_of = {plain(class_name[row]): row for row in rows}
    if set(row_of) != set(S3DIS_LABELS):
        raise ValueError(
            f"valid_index: the classes of S3DIS are {', '.join(S3DIS_LABELS)}; got {', '.join(row_of)}, whose order is"
            " unknown"
        )
    return tuple(row_of[label] for label in S3DIS_LABELS)


def rows_of(table: Tensor, rows: Sequence[int]) -> Tensor:
    """[K, D] rows of a table [n_class, D], on its device."""
    return table[torch.tensor(rows, device=table.device)]

"""Unit vectors of prompts, from three kinds of source: words alone, CLIP's text tower, or a file.

Every encoder maps a list of P prompts to `Encoded`: rows [P, D], the logarithm of the logit scale, and what it was.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

# CLIP's width, for which PonderV2's semantic decoders are made, and its trained logit scale.
OFFLINE_WIDTH = 512
LOGIT_SCALE = math.log(100.0)
NGRAMS = range(3, 6)
PROMPTS_AT_ONCE = 256

HUB_NAMES = {
    "ViT-B/32": "openai/clip-vit-base-patch32",
    "ViT-B/16": "openai/clip-vit-base-patch16",
    "ViT-L/14": "openai/clip-vit-large-patch14",
    "ViT-L/14@336px": "openai/clip-vit-large-patch14-336",
}


class TextError(ValueError):
    """Texts cannot be embedded as asked."""


class Encoded(NamedTuple):
    """rows [P, D] float32 unit vectors; log of the logit scale; a name of the source."""

    rows: Tensor
    logit_scale: float
    source: str


def plain(text: str) -> str:
    """The text with single spaces, which is how CLIP reads it too."""
    return " ".join(text.split())


def unit(rows: Tensor) -> Tensor:
    """[..., D] float32 rows scaled to length 1."""
    rows = rows.float()
    return rows / rows.norm(dim=-1, keepdim=True)


def encode_offline(prompts: Sequence[str]) -> Encoded:
    """Vectors that depend on nothing but the words: texts with common words, or words with common parts, are close.

    A word is the sum of one vector of signs per piece of it of 3 to 5 characters and one for the whole; the signs are
    bits of the piece's SHAKE-256 hash. A prompt is the sum of its words, each scaled to length 1. The vectors know
    nothing of what words mean.

    Raises:
        TextError: a prompt without a letter or a digit.
    """
    known: dict[str, np.ndarray] = {}
    rows = np.zeros((len(prompts), OFFLINE_WIDTH))
    for row, prompt in zip(rows, prompts, strict=True):
        words = re.findall(r"\w+", prompt.lower())
        if not words:
            raise TextError(f"prompt: expected at least one word, got {prompt!r}")
        for word in words:
            if word not in known:
                known[word] = _word_vector(word)
            row += known[word]
    source = "offline vectors of the words (not CLIP; they know nothing of meanings)"
    return Encoded(unit(torch.from_numpy(rows)), LOGIT_SCALE, source)


def _word_vector(word: str) -> np.ndarray:
    marked = f"<{word}>"
    pieces = {marked} | {marked[i : i + n] for n in NGRAMS for i in range(len(marked) - n + 1)}
    digests = [hashlib.shake_256(piece.encode()).digest(OFFLINE_WIDTH // 8) for piece in sorted(pieces)]
    bits = np.unpackbits(np.frombuffer(b"".join(digests), np.uint8)).reshape(len(digests), OFFLINE_WIDTH)
    vector = bits.sum(0, dtype=np.float64) * 2 - len(digests)
    return vector / np.linalg.norm(vector)


def encode_with_clip(prompts: Sequence[str], model: str) -> Encoded:
    """Text features of OpenAI's CLIP, by open_clip, else by transformers, on the CPU in float32.

    Args:
        prompts: the texts.
        model: CLIP's own name of the model, such as "ViT-B/16".

    Raises:
        TextError: neither library is installed, or it knows no such model or cannot get its weights.
    """
    libraries = {"open_clip": _encode_with_open_clip, "transformers": _encode_with_transformers}
    name = next((name for name in libraries if importlib.util.find_spec(name) is not None), None)
    if name is None:
        raise TextError(
            'text source "clip" needs open_clip or transformers: pip install open_clip_torch (or transformers);'
            ' without them take "offline" or a file of embeddings'
        )
    try:
        with torch.no_grad():
            return libraries[name](prompts, model)
    except TextError:
        raise
    # Both libraries raise errors of many kinds, among them those of the network and of the hub.
    except Exception as error:
        raise TextError(f'text source "clip": {name} cannot give {model!r}: {plain(str(error))}') from error


def _encode_with_open_clip(prompts: Sequence[str], model: str) -> Encoded:
    open_clip: Any = importlib.import_module("open_clip")
    name = model.removesuffix("px").replace("/", "-").replace("@", "-")
    # OpenAI's networks have this activation; open_clip only warns where its own description of a model has another.
    options = {"precision": "fp32", "device": "cpu", "force_quick_gelu": True}
    tower = open_clip.create_model(name, pretrained="openai", **options).eval()
    tokenize = open_clip.get_tokenizer(name)
    rows = [tower.encode_text(tokenize(part)) for part in _parts(prompts)]
    return Encoded(unit(torch.cat(rows)), float(tower.logit_scale.detach()), f"CLIP {model} by open_clip")


def _encode_with_transformers(prompts: Sequence[str], model: str) -> Encoded:
    transformers: Any = importlib.import_module("transformers")
    if model not in HUB_NAMES:
        raise TextError(f"clip_model: transformers has {', '.join(HUB_NAMES)}, got {model!r}")
    tower = transformers.CLIPModel.from_pretrained(HUB_NAMES[model]).float().eval()
    tokenize = transformers.CLIPTokenizer.from_pretrained(HUB_NAMES[model])
    rows = []
    for part in _parts(prompts):
        features = tower.get_text_features(**tokenize(part, padding=True, return_tensors="pt"))
        # From version 5 on they come in a record.
        rows.append(features if isinstance(features, Tensor) else features.pooler_output)
    return Encoded(unit(torch.cat(rows)), float(tower.logit_scale.detach()), f"CLIP {model} by transformers")


def _parts(prompts: Sequence[str]) -> list[list[str]]:
    texts = list(prompts)
    return [texts[start : start + PROMPTS_AT_ONCE] for start in range(0, len(texts), PROMPTS_AT_ONCE)]


class EmbeddingFile(NamedTuple):
    """Named vectors: names [n] with single spaces, rows [n, D] float32, log of the logit scale."""

    names: list[str]
    rows: Tensor
    logit_scale: float

    def lookup(self, texts: Sequence[str]) -> Tensor | None:
        """Unit rows [P, D] of the texts; None unless all are there."""
        index = {name: row for row, name in enumerate(self.names)}
        wanted = [plain(text) for text in texts]
        if not all(text in index for text in wanted):
            return None
        return unit(self.rows[[index[text] for text in wanted]])


def read_embeddings(path: Path) -> EmbeddingFile:
    """Vectors of texts from a file.

    An .npz holds `names` [n] (texts) and `embedding` [n, D], and may hold `logit_scale` (its logarithm, as CLIP has
    it); a .safetensors holds the tensors `embedding` and, if wanted, `logit_scale`, and in its metadata `names`, a JSON
    list.

    Raises:
        TextError: no such file, another suffix, an entry missing or of another shape, numbers that are not finite or
            rows of zeros, or the safetensors library missing.
    """
    readers = {".npz": _read_npz, ".safetensors": _read_safetensors}
    if path.suffix not in readers:
        raise TextError(f'text source: expected "offline", "clip" or a path to .npz or .safetensors, got {str(path)!r}')
    if not path.is_file():
        raise TextError(f"text source: no file {path}")
    try:
        arrays, names = readers[path.suffix](path)
    except TextError:
        raise
    # Damaged files raise errors of many kinds.
    except Exception as error:
        raise TextError(f"text source: cannot read {path}: {plain(str(error))}") from error
    if names is None or "embedding" not in arrays:
        raise TextError(f"text source: {path} lacks {'embedding' if names is not None else 'names'}")
    rows = arrays["embedding"].float()
    if rows.dim() != 2 or len(rows) != len(names) or not rows.numel():
        raise TextError(f"text source: {path}: expected embedding [{len(names)}, D], got {list(rows.shape)}")
    if not torch.isfinite(rows).all() or not rows.norm(dim=1).all():
        raise TextError(f"text source: {path}: expected finite rows other than 0")
    scale = arrays.get("logit_scale", torch.tensor(LOGIT_SCALE))
    if scale.numel() != 1:
        raise TextError(f"text source: {path}: expected one logit_scale, got shape {list(scale.shape)}")
    return EmbeddingFile([plain(name) for name in names], rows, float(scale))


def _read_npz(path: Path) -> tuple[dict[str, Tensor], list[str] | None]:
    with np.load(path, allow_pickle=False) as arrays:
        numbers = {key: torch.from_numpy(arrays[key]) for key in ("embedding", "logit_scale") if key in arrays}
        return numbers, [str(name) for name in arrays["names"]] if "names" in arrays else None


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], list[str] | None]:
    if importlib.util.find_spec("safetensors") is None:
        raise TextError(f"text source: {path} needs safetensors: pip install safetensors (or write an .npz)")
    safetensors: Any = importlib.import_module("safetensors")
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        names = [str(name) for name in json.loads(metadata["names"])] if "names" in metadata else None
        return {key: file.get_tensor(key) for key in file.keys()}, names  # noqa: SIM118

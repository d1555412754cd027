"""Text embeddings of classes: their three sources, averages over templates, and rows of a dataset's labels."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from ponder.models.ponderv2 import text_encoders
from ponder.models.ponderv2.prompt_training import CLASS_NAMES, VALID_INDEX
from ponder.models.ponderv2.text import S3DIS_LABELS, class_rows, make_text_table
from ponder.models.ponderv2.text_encoders import TextError, encode_offline

TEMPLATES = ("a photo of a [x]", "a [x] in a kitchen", "the [x]")


def cosine(names: list[str], one: str, other: str) -> float:
    table = make_text_table(names, "[x]").embedding
    return float(table[names.index(one)] @ table[names.index(other)])


def test_offline_vectors_depend_on_the_words_alone() -> None:
    table = make_text_table(CLASS_NAMES, TEMPLATES, scrambled=False)
    assert table.embedding.shape == (36, 512) and table.embedding.dtype == torch.float32
    torch.testing.assert_close(table.embedding.norm(dim=1), torch.ones(36))
    assert table.logit_scale == pytest.approx(math.log(100)) and "not CLIP" in table.source
    again = make_text_table(CLASS_NAMES[::-1], TEMPLATES, scrambled=False)
    assert torch.equal(again.embedding.flip(0), table.embedding)
    assert torch.unique(table.embedding, dim=0).shape[0] == 36
    # Case, spacing and order of words do not count.
    assert torch.equal(encode_offline(["Other structure "]).rows, encode_offline([" other  STRUCTURE"]).rows)


def test_offline_vectors_are_the_same_everywhere() -> None:
    """Checkpoints compare points with them, so no version, machine or hash seed may change them."""
    table = make_text_table(["shower curtain", "wall"], "[x]").embedding
    pinned = [[-0.02446757, -0.03930373, -0.10061578, 0.00864771], [-0.02734855, 0.02734855, 0.00000000, 0.00000000]]
    torch.testing.assert_close(table[:, :4], torch.tensor(pinned), rtol=0, atol=1e-6)


def test_classes_that_share_words_are_closer() -> None:
    names = ["curtain", "shower curtain", "chair", "refrigerator", "refridgerator"]
    assert 0.6 < cosine(names, "curtain", "shower curtain") < 0.8
    assert cosine(names, "refrigerator", "refridgerator") > 0.4
    assert abs(cosine(names, "curtain", "chair")) < 0.2


@pytest.mark.parametrize("scrambled", [True, False])
def test_averages_over_templates(scrambled: bool) -> None:
    """PonderV2's mean runs over prompts j, j + n_class, ... of a list that stands class after class."""
    names = ["wall", "floor", "chair", "bed"]
    prompts = [form.replace("[x]", name) for name in names for form in TEMPLATES]
    rows = encode_offline(prompts).rows
    taken = [[j + 4 * t for t in range(3)] if scrambled else [3 * j + t for t in range(3)] for j in range(4)]
    means = torch.stack([rows[own].mean(0) for own in taken])
    table = make_text_table(names, TEMPLATES, scrambled=scrambled)
    torch.testing.assert_close(table.embedding, means / means.norm(dim=1, keepdim=True))


def test_scrambling_mixes_classes_and_its_correction_does_not() -> None:
    names = ["wall", "floor", "chair", "bed", "lamp", "sink", "sofa"]
    alone = make_text_table(names, "[x]").embedding
    wrong, right = (make_text_table(names, TEMPLATES, scrambled=s).embedding for s in (True, False))
    assert ((right @ alone.T).argmax(1) == torch.arange(7)).all()
    assert ((wrong @ alone.T).argmax(1) != torch.arange(7)).any()
    single = make_text_table(names, ["[x]"], scrambled=True).embedding
    torch.testing.assert_close(single, alone)


class Tower:
    """Stands for CLIP: the features of a text are its letter counts."""

    def __init__(self) -> None:
        self.logit_scale = torch.nn.Parameter(torch.tensor(3.0))

    def eval(self) -> Tower:
        return self

    float = eval

    def encode_text(self, tokens: list[str]) -> Tensor:
        return torch.tensor([[text.count(letter) for letter in "abcdefghijklmnopqrstuvwxyz "] for text in tokens]) * 2.0

    def get_text_features(self, input_ids: list[str]) -> SimpleNamespace:
        return SimpleNamespace(pooler_output=self.encode_text(input_ids))


def install(monkeypatch: pytest.MonkeyPatch, name: str, **members: object) -> None:
    """Make only this library importable among those that have CLIP."""
    found = {name: SimpleNamespace(**members)}
    monkeypatch.setattr(text_encoders.importlib.util, "find_spec", lambda wanted: found.get(wanted))
    monkeypatch.setitem(sys.modules, name, ModuleType(name))
    for key, member in members.items():
        setattr(sys.modules[name], key, member)


def test_clip_by_open_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def create_model(name: str, **options: object) -> Tower:
        calls.append((name, options))
        return Tower()

    install(monkeypatch, "open_clip", create_model=create_model, get_tokenizer=lambda name: lambda texts: texts)
    table = make_text_table(["wall"] * 300, "a [x]", "clip", clip_model="ViT-L/14@336px")
    truth = Tower().encode_text(["a wall"])
    torch.testing.assert_close(table.embedding, (truth / truth.norm()).expand(300, -1))
    assert table.logit_scale == 3.0 and table.source == "CLIP ViT-L/14@336px by open_clip"
    assert [call[0] for call in calls] == ["ViT-L-14-336"]
    # OpenAI's weights need OpenAI's activation.
    assert calls[0][1]["pretrained"] == "openai" and calls[0][1]["force_quick_gelu"] is True


def test_clip_by_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = []

    def from_pretrained(result: object) -> SimpleNamespace:
        return SimpleNamespace(from_pretrained=lambda name: loaded.append(name) or result)

    def tokenise(texts: list[str], padding: bool, return_tensors: str) -> dict:
        return {"input_ids": texts}

    members = {"CLIPModel": from_pretrained(Tower()), "CLIPTokenizer": from_pretrained(tokenise)}
    install(monkeypatch, "transformers", **members)
    table = make_text_table(["wall", "bed"], TEMPLATES, "clip", scrambled=False)
    rows = Tower().encode_text([form.replace("[x]", name) for name in ("wall", "bed") for form in TEMPLATES])
    means = (rows / rows.norm(dim=1, keepdim=True)).view(2, 3, -1).mean(1)
    torch.testing.assert_close(table.embedding, means / means.norm(dim=1, keepdim=True))
    assert loaded == ["openai/clip-vit-base-patch16"] * 2 and table.source == "CLIP ViT-B/16 by transformers"
    with pytest.raises(TextError, match=r"clip_model: transformers has ViT-B/32, .*got 'RN50'"):
        make_text_table(["wall"], "[x]", "clip", clip_model="RN50")


def test_clip_that_cannot_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_encoders.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(TextError, match="needs open_clip or transformers: pip install open_clip_torch"):
        make_text_table(["wall"], "[x]", "clip")

    def offline(name: str, **options: object) -> Tower:
        raise OSError("no network,\n no weights")

    install(monkeypatch, "open_clip", create_model=offline, get_tokenizer=None)
    with pytest.raises(TextError, match="open_clip cannot give 'ViT-B/16': no network, no weights"):
        make_text_table(["wall"], "[x]", "clip")


def test_files_of_classes_and_of_prompts(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(4, 8))
    classes = tmp_path / "classes.npz"
    np.savez(classes, names=["bed", "wall", "other structure", "floor"], embedding=vectors, logit_scale=2.5)
    table = make_text_table(["wall", "other structure "], TEMPLATES, str(classes))
    wanted = torch.tensor(vectors[[1, 2]]).float()
    torch.testing.assert_close(table.embedding, wanted / wanted.norm(dim=1, keepdim=True))
    assert table.logit_scale == 2.5 and table.source == f"{classes} (classes)"
    prompts = tmp_path / "prompts.npz"
    np.savez(prompts, names=["a wall", "a bed", "the wall", "the bed"], embedding=vectors)
    table = make_text_table(["wall", "bed"], ["a [x]", "the [x]"], str(prompts), scrambled=False)
    rows = torch.tensor(vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).float()
    means = torch.stack([rows[[0, 2]].mean(0), rows[[1, 3]].mean(0)])
    torch.testing.assert_close(table.embedding, means / means.norm(dim=1, keepdim=True))
    assert table.source == f"{prompts} (prompts)" and table.logit_scale == pytest.approx(math.log(100))


def test_safetensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "classes.safetensors"
    path.write_bytes(b"")
    monkeypatch.setattr(text_encoders.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(TextError, match="needs safetensors: pip install safetensors"):
        make_text_table(["wall"], "[x]", str(path))
    tensors = {"embedding": torch.eye(3)[:2] * 2, "logit_scale": torch.tensor(1.5)}

    class File:
        def __enter__(self) -> File:
            return self

        def __exit__(self, *error: object) -> None:
            pass

        def metadata(self) -> dict:
            return {"names": json.dumps(["wall", "floor"])}

        def keys(self) -> list[str]:
            return list(tensors)

        def get_tensor(self, key: str) -> Tensor:
            return tensors[key]

    install(monkeypatch, "safetensors", safe_open=lambda file, framework: File())
    table = make_text_table(["floor", "wall"], "[x]", str(path))
    assert torch.equal(table.embedding, torch.eye(3)[[1, 0]]) and table.logit_scale == 1.5


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"embedding": np.ones((1, 4))}, "lacks names"),
        ({"names": ["wall"]}, "lacks embedding"),
        ({"names": ["wall"], "embedding": np.ones((2, 4))}, r"expected embedding \[1, D\], got \[2, 4\]"),
        ({"names": ["wall"], "embedding": np.zeros((1, 4))}, "expected finite rows other than 0"),
        ({"names": ["wall"], "embedding": np.full((1, 4), np.nan)}, "expected finite rows other than 0"),
        ({"names": ["floor"], "embedding": np.ones((1, 4))}, "neither all prompts nor all classes; classes: wall"),
        ({"names": ["wall"], "embedding": np.ones((1, 4)), "logit_scale": np.ones(2)}, "expected one logit_scale"),
        ({"names": np.array(["wall", None]), "embedding": np.ones((2, 4))}, "cannot read .*allow_pickle"),
    ],
)
def test_files_that_do_not_serve(tmp_path: Path, arrays: dict, message: str) -> None:
    path = tmp_path / "table.npz"
    np.savez(path, **arrays)
    with pytest.raises(TextError, match=message):
        make_text_table(["wall"], "a [x]", str(path))


def test_sources_and_templates_that_do_not_serve(tmp_path: Path) -> None:
    with pytest.raises(TextError, match=r'expected "offline", "clip" or a path to .npz or .safetensors, got \'cilp\''):
        make_text_table(["wall"], "[x]", "cilp")
    with pytest.raises(TextError, match=r"no file .*missing.npz"):
        make_text_table(["wall"], "[x]", str(tmp_path / "missing.npz"))
    with pytest.raises(TextError, match=r"template: expected \[x\] where the class goes, got 'a photo'"):
        make_text_table(["wall"], ("a [x]", "a photo"))
    with pytest.raises(TextError, match="class_name: expected a list of texts, got 'wall'"):
        make_text_table("wall", "[x]")
    with pytest.raises(TextError, match=r"template: expected a list of texts, got \[\]"):
        make_text_table(["wall"], [])
    with pytest.raises(TextError, match="prompt: expected at least one word, got '--'"):
        make_text_table(["--"], "[x]")


def test_rows_of_a_datasets_labels() -> None:
    structured3d, scannet, s3dis = VALID_INDEX
    for order in (True, False):
        assert class_rows("ScanNet", scannet, CLASS_NAMES, order) == scannet
        assert class_rows("Structured3D", structured3d, CLASS_NAMES, order) == structured3d
    assert class_rows("S3DIS", s3dis, CLASS_NAMES, True) == s3dis
    fixed = class_rows("S3DIS", s3dis, CLASS_NAMES, False)
    assert [CLASS_NAMES[row] for row in fixed] == list(S3DIS_LABELS) and sorted(fixed) == sorted(s3dis)
    # A list of S3DIS alone, as its own configuration has it, is in the order of the labels already.
    assert class_rows("S3DIS", range(13), S3DIS_LABELS, False) == tuple(range(13))
    with pytest.raises(ValueError, match=r"valid_index: expected 0 to 35 for ScanNet, got \[0, 36\]"):
        class_rows("ScanNet", (0, 36), CLASS_NAMES, True)
    with pytest.raises(ValueError, match=r"the classes of S3DIS are ceiling, floor, .*; got wall, floor, whose order"):
        class_rows("S3DIS", (0, 1), CLASS_NAMES, False)

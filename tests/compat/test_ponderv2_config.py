"""Config files: what is evaluated, what is refused, inheritance, overrides, and writing them out."""

from __future__ import annotations

import copy
import pickle
import time
import warnings
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from ponder.compat.ponderv2 import Config, ConfigDict, ConfigError, ConfigWarning, load_config, unknown_keys
from ponder.compat.ponderv2.options import parse_value


def written(folder: Path, text: str, name: str = "config.py") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(dedent(text))
    return path


def same(actual: Any, expected: Any) -> bool:
    """Equal with equal types and the same order of keys; any dictionary counts as a dict."""
    if isinstance(expected, dict):
        keys = isinstance(actual, dict) and list(actual) == list(expected)
        return keys and all(same(actual[key], expected[key]) for key in expected)
    if isinstance(expected, list | tuple):
        parts = type(actual) is type(expected) and len(actual) == len(expected)
        return parts and all(map(same, actual, expected))
    return type(actual) is type(expected) and actual == expected


# Each text means the same to Python itself.
PLAIN = {
    "training": """
        '''A run.'''
        gpus = 4
        batch_size = 8 * gpus  # all of them
        rate: float = 0.0005 * batch_size / 8
        optimizer = dict(type="SGD", lr=rate, nesterov=True, momentum=None)
        scheduler = dict(max_lr=optimizer["lr"], pct_start=-0.05, milestones=[1 / 64, -1 / 64])
        model = dict(backbone={"channels": (32, 64), "layers": [2, *(3, 4)], **{"cls_mode": False}}, mask=None)
        """,
    "operators": """
        a = (7 // 2, 7 % 4, 2**10, -(-3), ~5, 1 << 4, 256 >> 3, 6 & 3, 6 | 3, 6 ^ 3, not 1, +2)
        b = 0
        b = 1 < 2 <= 2 != 3 and "x" in "xyz" and 3 not in [1, 2] and None is None and b is not None
        c = (0 or [] or "last", 1 and 2 and 0 and 5, "yes" if b else "no", 3 > 2 > 2)
        d = [1, 2] * 2 + [3], "ab" * 2 + "c", (1,) + (2,), {1, 2} | {3}, {"x": 1} | {"y": 2}
        """,
    "functions": """
        a = dict([("x", 1)], y=2), list(range(3)), tuple("ab"), len({1: 2}), int("7"), float("1e-3"), str(1.5), set()
        b = min(3, 1), max([1, 5], default=0), round(2.567, ndigits=1), abs(-2), sum([1, 2], 3), bool([])
        c = sorted([3, 1, 2], reverse=True), list(zip([1, 2], "ab")), list(enumerate("ab", start=1)), range(2, 9, 3)
        d = dict(**{"k": 1}, m=max(*[1, 9], 3), n=sum(i * i for i in range(4)), o=float("inf"))
        """,
    "subscripts and text": """
        names = ["wall", "floor", "chair"]
        a = names[-1], names[1:], names[::-1], names[:2], "abc"[1], {"x": {"y": 5}}["x"]["y"]
        b = f"{names[0]}-{3:03d}-{1 / 3:.2f}-{'q'!r}-{2:>{4}}", f"{{x}}", "a" "b"
        """,
    "comprehensions": """
        n = 3
        a = [i * n for i in range(n) if i % 2 == 0], {k: v for k, v in {"x": 1}.items()} if False else {}
        b = {f"c{i}": [j for j in range(i)] for i in range(n)}, {i // 2 for i in range(4)}
        c = [(x, y) for x in range(2) for y in range(x, 2)], [head for head, *rest in [(1, 2, 3), (4,)]]
        """.replace("{k: v for k, v in {\"x\": 1}.items()} if False else {}", "{k: k + 1 for k in [1]}"),
    "assignments": """
        a = b = [1]
        a += [2]
        c, (d, *e), *f = 1, (2, 3, 4), 5, 6
        g = dict(x=dict(), y=[0, 0])
        g["x"]["z"] = g["y"][1] = c
        g["y"][0] += 5
        g["y"][0] *= 2
        h = 2
        h **= 3
        pass
        _kept = 1
        __dropped = 2
        """,
}  # fmt: skip


@pytest.mark.parametrize("name", PLAIN)
def test_values_are_those_of_running_the_file(name: str, tmp_path: Path) -> None:
    expected: dict[str, Any] = {}
    exec(dedent(PLAIN[name]), expected)  # our own text, in a test
    expected = {key: value for key, value in expected.items() if not key.startswith("__")}
    config = load_config(written(tmp_path, PLAIN[name]))
    assert same(config, expected), config


def test_constants_of_ponderv2_can_be_imported(tmp_path: Path) -> None:
    module = "ponder.datasets.preprocessing.scannet.meta_data.scannet200_constants"
    config = load_config(written(tmp_path, f"from {module} import CLASS_LABELS_200 as names\nn = len(names)\n"))
    assert config.n == len(set(config.names)) == 200 and config.names[:3] == ("wall", "chair", "floor")
    path = written(tmp_path, f"from {module} import CLASS_LABEL_200\n")
    with pytest.raises(ConfigError, match="has no 'CLASS_LABEL_200' here; did you mean 'CLASS_LABELS_200'"):
        load_config(path)


REFUSED = [
    ("import os", "an import is not allowed"),
    ("from os import path", "importing from 'os' is not allowed"),
    ("from .os import path", "importing from 'os' is not allowed"),
    ("x = __import__('os')", "calling '__import__' is not allowed"),
    ("x = open('y')", "calling 'open' is not allowed"),
    ("x = eval('1')", "calling 'eval' is not allowed"),
    ("x = ().__class__", r"an attribute \(x.y\) is not allowed"),
    ("x = 'a'.join([])", r"an attribute \(x.y\) is not allowed"),
    ("x = dict\n", "the function 'dict' can only be called"),
    ("len = 3\nx = len([])", "'len' is a value here"),
    ("x = lambda: 1", "a lambda is not allowed"),
    ("x = (y := 1)", "an assignment inside an expression"),
    ("def f(): pass", "a function definition"),
    ("class C: pass", "a class definition"),
    ("for i in [1]: pass", "a for loop"),
    ("if 1: x = 2", "an if statement"),
    ("while 1: pass", "a while loop"),
    ("x = [0]\ndel x", "del is not allowed"),
    ("x = (i for i in [1])", "a generator outside a call"),
    ("x = dict()\nx.y = 1", "an attribute"),
    ("x = b'1'", "a value of type bytes"),
    ("x = 1j", "a value of type complex"),
    ("x = {}[1]", "no key 1"),
    ("x = [1][2]", "list index out of range"),
    ("x = 1 / 0", "division by zero"),
    ("x = 1 + 'a'", "unsupported operand"),
    ("x = {**[1]}", r"\*\* needs a dict, got list"),
    ("x = dict(a=1, **{'a': 2})", "argument 'a' is given twice"),
    ("a, b = 1, 2, 3", "expected 2 values to unpack, got 3"),
    ("batch_sise = 1\nx = batch_size", "name 'batch_size' is not defined; did you mean 'batch_sise'"),
    ("x = {{ _base_.a }}", "the file has no _base_"),
    ("x = (1", "was never closed"),
    ("custom_imports = dict(imports=['a'])", "custom_imports is not supported"),
    ("filename = 'a'", "the name 'filename' is reserved"),
]


@pytest.mark.parametrize(("text", "message"), REFUSED, ids=[text for text, _ in REFUSED])
def test_anything_else_is_refused_with_its_place(text: str, message: str, tmp_path: Path) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_the_line_of_a_mistake_is_named(tmp_path: Path) -> None:
    path = written(tmp_path, "a = 1\nb = dict(\n    c=2,\n    d=[3, a / 0],\n)\n")
    with pytest.raises(ConfigError, match=rf"{path}:4: division by zero"):
        load_config(path)


TOO_MUCH = [
    ("x = 10**10**10", "bits is too large"),
    ("x = 2**4096", "bits is too large"),
    ("x = 1\nx <<= 10**9", "bits is too large"),
    ("x = 2\nx **= 10**9", "bits is too large"),
    ("x = 10.0**1000", "out of range|too large"),
    ("x = range(10**12)", "too long"),
    ("x = list(range(10**30))", "too long"),
    ("x = [0] * 10**10", "are too many"),
    ("x = 10**10 * 'ab'", "are too many"),
    ("x = [0]\nx *= 10**9", "are too many"),
    ("x = f'{1:1000000000}'", "too wide"),
    ("x = f'{1:{10**9}}'", "too wide"),
    ("x = '%1000000000d' % 1", "formatting text with % is not allowed"),
    ("x = [i for i in range(10**4) for j in range(10**4)]", "takes too long|too large"),
    ("x = sum(1 for i in range(10**4) for j in range(10**4))", "takes too long|too large"),
    ("a = [0] * 1000\nb = [a] * 1000\n", "holds more than"),
    ("a = [1] * 10\nb = [a] * 10\nc = [b] * 10\nd = [c] * 10\ne = [d] * 10\nx = str(e)", "holds more than"),
    ("a = [0]\nb = [a] * 10000\na += [1, 2, 3]\nx = b == b", "holds more than"),
    ("a = [0]\na[0] = a", "nested more than"),
    ("a = {}\na['b'] = {}\na['b']['c'] = a", "nested more than"),
    ("x = " + "[" * 90 + "]" * 90, "nested more than"),
    ("x = " + "-" * 5000 + "1", "nested too deeply|recursion|too complex"),
    ("x = " + "1 + " * 5000 + "1", "nested too deeply|recursion|too complex"),
    ("x = 0x" + "f" * 2000, "bits is too large"),
    ("x = '" + "a" * 200_000 + "'", "characters is too long"),
    ("#" * 2_000_000, "is too large"),
]


@pytest.mark.parametrize(("text", "message"), TOO_MUCH, ids=[text[:40] for text, _ in TOO_MUCH])
def test_too_much_is_refused_quickly(text: str, message: str, tmp_path: Path) -> None:
    path = written(tmp_path, text)
    began = time.process_time()
    with pytest.raises(ConfigError, match=message):
        load_config(path)
    assert time.process_time() - began < 20.0  # a bound for the slowest machine: none of them takes a second


def test_bases_merge_key_by_key(tmp_path: Path) -> None:
    written(tmp_path, "epoch = 100\nhooks = [dict(type='A')]\nmodel = dict(a=dict(x=1, y=2), b=3)\n", "base/run.py")
    written(tmp_path, "data = dict(root='d', size=(1, 2))\n", "base/data.py")
    middle = (
        "_base_ = ['base/run.py', './base/data.py']\nmodel = dict(a=dict(y=5, z=6), new=dict(_delete_=True, q=1))\n"
    )
    written(tmp_path, middle, "middle.py")
    text = """
        _base_ = "middle.py"
        hooks = []
        model = dict(a=dict(_delete_=True, w=1), new=dict(r=2))
        data = dict(size=dict(_delete_=True, n=1))
        """
    config = load_config(written(tmp_path, text))
    expected = dict(
        epoch=100,
        hooks=[],
        model=dict(a=dict(w=1), b=3, new=dict(q=1, r=2)),
        data=dict(root="d", size=dict(n=1)),
    )
    assert same(config, expected), config
    assert same(load_config(tmp_path / "middle.py").model, dict(a=dict(x=1, y=5, z=6), b=3, new=dict(q=1)))


def test_references_to_bases_and_to_the_file_itself(tmp_path: Path) -> None:
    written(tmp_path, "lr = 0.5\nmodel = dict(width=[8, 16])\n", "base.py")
    text = """
        where = "{{ fileDirname }}/{{fileBasename}}|{{ fileBasenameNoExtension }}|{{ fileExtname }}"
        rate = {{ _base_.lr }} * 2
        _base_ = ["base.py"]
        copied = [{{_base_.model}}, dict(w={{ _base_.model.width }})]
        copied[0]["width"][0] = 0
        """
    config = load_config(written(tmp_path, text, "run.v2.py"))
    assert config.where == f"{tmp_path}/run.v2.py|run.v2|.py"
    assert config.rate == 1.0 and config.model.width == [8, 16]
    assert same(config.copied, [dict(width=[0, 16]), dict(w=[8, 16])])
    path = written(tmp_path, "_base_ = 'base.py'\nx = {{ _base_.model.depth }}\n")
    with pytest.raises(ConfigError, match=r"config.py:2: the bases have no 'model.depth'"):
        load_config(path)


def test_wrong_bases_are_reported(tmp_path: Path) -> None:
    written(tmp_path, "a = 1\n", "one.py")
    written(tmp_path, "a = 2\n", "two.py")
    written(tmp_path, "_base_ = 'second.py'\n", "first.py")
    written(tmp_path, "_base_ = 'first.py'\n", "second.py")
    for text, message in (
        ("_base_ = ['one.py', 'two.py']", "a stands in more than one of the _base_ files"),
        ("_base_ = 'first.py'", r"builds on itself: \S*config.py -> \S*first.py -> \S*second.py -> \S*first.py$"),
        ("_base_ = 'config.py'", "builds on itself"),
        ("_base_ = 'none.py'", r"none.py, a base of \S*config.py does not exist"),
        ("_base_ = 'one.yaml'", "expected a .py file"),
        ("_base_ = [1]", "expects paths, got 1"),
        ("_base_ = 'one.py'\na = dict(b=1)", "a is a dict but a int in the base; add _delete_=True"),
    ):
        path = written(tmp_path, text)
        with pytest.raises(ConfigError, match=message):
            load_config(path)
    with pytest.raises(ConfigError, match="does not exist"):
        load_config(tmp_path / "nothing.py")
    (tmp_path / "binary.py").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path / "binary.py")


def test_a_deprecated_config_says_what_to_use(tmp_path: Path) -> None:
    path = written(tmp_path, "_deprecation_ = dict(expected='new.py', reference='the docs')\na = 1\n")
    with pytest.warns(ConfigWarning, match="is deprecated; use new.py; see the docs"):
        assert same(load_config(path), {"a": 1})


VALUES = [
    ("5", 5), ("-2", -2), ("1e-3", 1e-3), ("true", True), ("False", False), ("None", None), ("room", "room"),
    ("'5'", 5), ('"a"', "a"), ("exp/my run", "exp/my run"), ("", ""), ("1,2,3", [1, 2, 3]), ("a,", ["a"]),
    ("[a, b, c]", ["a", "b", "c"]), ("(1,)", (1,)), ("(1)", (1,)), ("[]", []), ("()", ()),
    ("(128,128,32)", (128, 128, 32)),
    ("[(1, 2, 3), [a, b], c]", [(1, 2, 3), ["a", "b"], "c"]), ("(1,2),(3,4)", [(1, 2), (3, 4)]),
    ("[[1],[]]", [[1], []]),
    ("x=y", "x=y"), ("none", "none"), ("a(b,c)", "a(b,c)"), ("[0.5,None]", [0.5, None]),
]  # fmt: skip


@pytest.mark.parametrize(("text", "value"), VALUES, ids=[text for text, _ in VALUES])
def test_option_values(text: str, value: Any) -> None:
    assert same(parse_value(text), value)


@pytest.mark.parametrize("text", ["[1,2", "1)", "([1)]", "(1,2))"])
def test_brackets_must_match(text: str) -> None:
    with pytest.raises(ConfigError, match="brackets do not match"):
        parse_value(text)


RUN = """
    epoch = 8
    model = dict(type="M", grid_shape=(128, 128, 32), mask=None, renderer=dict(type="R", near=0.1))
    data = dict(train=dict(datasets=[dict(name="a", loop=4), dict(name="b", loop=2)], sizes=[1, 2]))
    """


def test_options_reach_dictionaries_and_lists(tmp_path: Path) -> None:
    path = written(tmp_path, RUN)
    options = [
        "epoch=2",
        "model.grid_shape=(64,64,16)",
        "data.train.datasets.1.loop=1",
        "data.train.sizes.0=7",
        "model.renderer.type=S",
        "model.renderer._delete_=True",
        "weight=None",
        "epoch=3",
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        config = load_config(path, options)
    assert config.epoch == 3 and config.model.grid_shape == (64, 64, 16)
    assert same(config.model.renderer, dict(type="S"))
    assert [item.loop for item in config.data.train.datasets] == [4, 1] and config.data.train.sizes == [7, 2]
    assert config.weight is None
    assert same(load_config(path, ["model.renderer._delete_=False"]), load_config(path))


def test_options_that_add_keys_are_reported(tmp_path: Path) -> None:
    path = written(tmp_path, RUN)
    for option, message, key in (
        ("epochs=3", "the config has no 'epochs', it is added; did you mean 'epoch'", "epochs"),
        ("modle.mask=1", "the config has no 'modle', it is added; did you mean 'model'", "modle"),
        ("model.rendered.near=1", "model has no 'rendered', it is added; did you mean 'renderer'", "model"),
        ("model.qqq=1", "model has no 'qqq', it is added$", "model"),
    ):
        with pytest.warns(ConfigWarning, match=message) as caught:
            config = load_config(path, [option])
        assert key in config and caught[0].filename == __file__
    assert config.model.qqq == 1


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("epoch", "expected key=value"),
        ("=1", "expected key=value"),
        ("model..mask=1", "expected key=value"),
        ("my-key=1", "not the name of a setting"),
        ("epoch.x=1", "epoch is 8, which holds no 'x'"),
        ("model.grid_shape.0=64", "model.grid_shape is .128, 128, 32., which holds no '0'"),
        ("data.train.datasets.2.loop=1", "data.train.datasets is a list of 2, got index '2'"),
        ("data.train.datasets.loop=1", "data.train.datasets is a list of 2, got index 'loop'"),
        ("filename=1", "reserved"),
    ],
)
@pytest.mark.filterwarnings("ignore::ponder.compat.ponderv2.ConfigWarning")
def test_options_that_cannot_be_applied(option: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(written(tmp_path, RUN), [option])


def test_one_text_is_no_list_of_options(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="expected a list of key=value"):
        load_config(written(tmp_path, RUN), "epoch=1")


def test_attributes_at_every_depth(tmp_path: Path) -> None:
    path = written(tmp_path, RUN)
    config = load_config(path)
    assert config.filename == str(path) and isinstance(config, dict)
    assert config.data.train.datasets[0].name == "a" and isinstance(config.model.renderer, ConfigDict)
    config.model.extra = dict(deep=[dict(x=1)])
    config["more"] = ({"y": 2},)
    config.update(third={"z": 3})
    assert config.setdefault("fourth", {}).setdefault("w", 4) == 4
    assert config.model.extra.deep[0].x == 1 and config.more[0].y == 2 and config.third.z == 3 and config.fourth.w == 4
    del config.model.mask
    assert "mask" not in config.model and config.model.get("mask", 5) == 5
    with pytest.raises(AttributeError, match="the config has no 'mask'; it has type, grid_shape"):
        _ = config.model.mask
    with pytest.raises(AttributeError, match="'keys' is the name of a method"):
        config.keys = 1
    with pytest.raises(AttributeError, match="no 'mask'"):
        del config.model.mask
    assert not hasattr(config, "absent")


def test_copies_are_deep_and_complete(tmp_path: Path) -> None:
    config = load_config(written(tmp_path, dedent(RUN) + "helper = 3\ntwice = 2 * helper\n"))
    for other in (copy.deepcopy(config), pickle.loads(pickle.dumps(config)), config.copy()):
        assert same(other, config) and isinstance(other, Config) and isinstance(other.model, ConfigDict)
        assert other.filename == config.filename and other.helper_names == {"helper"}
        other.model.renderer.near = 0
        other.data.train.datasets[0].loop = 0
    assert config.model.renderer.near == 0.1 and config.data.train.datasets[0].loop == 4
    plain = config.to_dict()
    assert same(plain, config) and type(plain["data"]["train"]["datasets"][0]) is dict
    source = {"a": {"b": [1]}}
    taken = Config(source)
    taken.a.b.append(2)
    assert source == {"a": {"b": [1]}} and taken.filename is None


def test_the_text_reads_back(tmp_path: Path) -> None:
    values = dict(
        numbers=[1, -2.5, 1e-7, float("inf"), -float("inf"), True, None],
        words='it\'s "quoted"\n{{ fileDirname }} {{ _base_.x }} \\ é',
        empty=[(), [], {}, set(), ""],
        keys={1: "a", "not a name": 2, "class": 3, ("t", 1): 4},
        nested=dict(a=dict(b=[dict(c=(1,))]), names=tuple(f"name {i}" for i in range(40))),
        some={3, 1, 2},
        numbered=range(3),
    )
    config = Config(values)
    config.dump(tmp_path / "out.py")
    back = load_config(tmp_path / "out.py")
    assert same(back, values), back.pretty_text
    assert back.pretty_text == config.pretty_text and max(map(len, config.pretty_text.splitlines())) <= 120
    for bad, message in (({"a-b": 1}, "key 'a-b'"), ({"a": {"b": [1j]}}, "a.b: a value of type complex")):
        with pytest.raises(ConfigError, match=message):
            _ = Config(bad).pretty_text


def test_unknown_keys_are_mistakes_and_helpers_are_not(tmp_path: Path) -> None:
    text = "gpus = 4\nbatch_size = 2 * gpus\nenable_ampp = True\nlearning = 1\nmodel = dict(anything=1)\n"
    config = load_config(written(tmp_path, text))
    assert unknown_keys(config) == [
        "unknown key 'enable_ampp': nothing reads it; did you mean 'enable_amp'?",
        "unknown key 'learning': nothing reads it",
    ]
    assert unknown_keys({"gpus": 4, "max_point": 1}) == ["unknown key 'gpus': nothing reads it"]
    written(tmp_path, text, "base.py")
    assert len(unknown_keys(load_config(written(tmp_path, "_base_ = 'base.py'\n")))) == 2
    reader = written(tmp_path, "_base_ = 'base.py'\nmax_point = {{ _base_.learning }}\n")
    assert len(unknown_keys(load_config(reader))) == 1

"""The examples of the package's README run as they are printed."""

import doctest
from pathlib import Path

import pytest

import ponder_kernels

README = Path(ponder_kernels.__file__).with_name("README.md")


@pytest.mark.unguarded
def test_examples() -> None:
    results = doctest.testfile(str(README), module_relative=False, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert results.attempted > 30 and results.failed == 0


def test_every_public_function_has_an_example() -> None:
    text = README.read_text(encoding="utf-8")
    functions = [n for n in ponder_kernels.__all__ if n.islower() and n != "render_rays"]
    missing = [n for n in functions if f"pk.{n}(" not in text]
    assert not missing

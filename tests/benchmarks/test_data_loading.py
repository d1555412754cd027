"""The loading benchmark reads what it wrote, with and without loader processes."""

from __future__ import annotations

import re

import pytest

from benchmarks import data_loading


def test_prints_every_part(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = {"samples": 2, "batch": 1, "scenes": 1, "frames": 2, "points": 400, "height": 24, "width": 32, "views": 2}
    options = [word for name, value in sizes.items() for word in (f"--{name}", str(value))]
    data_loading.main([*options, "--workers", "0", "1"])
    found = capsys.readouterr().out
    assert "400 points, 2 views of 32 x 24" in found
    times = re.search(r"reading ([\d.]+) s, transforms -?[\d.]+ s, sample ([\d.]+) s", found)
    assert times and float(times[1]) > 0 and float(times[2]) > 0
    rates = re.findall(r"(\d) loader processes: ([\d.]+) samples/s", found)
    assert [name for name, _ in rates] == ["0", "1"] and all(float(rate) > 0 for _, rate in rates)


def test_options(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        data_loading.main(["--workers", "-1"])
    assert "at least 0" in capsys.readouterr().err

"""`ponder convert` as a whole: interrupted and repeated runs, worker processes, messages and exit codes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import BinaryIO

import pytest

from ponder.cli import main
from ponder.data.convert.runner import Outcome, run_plan
from ponder.data.convert.scannet import ScanNetOptions, plan_scannet
from ponder.data.convert.sink import BrokenPieceError, Sink
from ponder.data.convert.summary import check_not_empty
from ponder.data.convert.units import CLOUD, FRAMES, Part, Plan, Unit
from ponder.data.scene import DataError
from ponder.data.synthetic.raw import write_raw_scannet
from ponder.train import files as output_files
from ponder.train.files import write_atomically
from tests.ponder.convert_help import WRITERS, copy_of, reasons, run, snapshot, summary


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("scannet")
    write_raw_scannet(root, scenes=2, size=(9, 12), views=1, frames=3)
    return root


def plan_of(root: Path, **options: object) -> Plan:
    return plan_scannet(ScanNetOptions(root, splits=root / "splits", **options))


def command(root: Path, out: Path, *more: str) -> list[str]:
    return ["convert", "scannet", "--data", str(root), "--splits", str(root / "splits"), "--out", str(out), *more]


def toy_convert(unit: Unit, parts: frozenset[str], sink: Sink) -> None:
    """Does what the unit's source says."""
    if unit.source == "die":
        os._exit(1)
    if unit.source == "fail":
        raise TypeError("a fault of ours")
    for number in range(100 if unit.source == "slow" else 3):
        with sink.attempt(CLOUD):
            if unit.source == "skip":
                raise BrokenPieceError("all is lost", f"{unit.name} {number}")
            if unit.source == "slow":
                time.sleep(0.1)
            sink.put(CLOUD, [(f"{unit.name}/{number}", b"content")])
        sink.tick(1)


def toy_plan(*sources: str) -> Plan:
    part = Part(CLOUD, (), {}, "")
    return Plan("toy", "toys", [Unit(f"u{i}", (part,), 3, s) for i, s in enumerate(sources)], toy_convert)


def test_a_second_run_has_nothing_to_do(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(command(raw, tmp_path, "--workers", "1")) == 0
    before = snapshot(tmp_path)
    first = summary(tmp_path)
    assert first[CLOUD] == {"converted": 2, "converted_before": 0, "skipped": []}
    assert first[FRAMES] == {"converted": 6, "converted_before": 0, "skipped": []}
    assert main(command(raw, tmp_path, "--workers", "1")) == 0
    assert snapshot(tmp_path) == before
    assert summary(tmp_path)[FRAMES] == {"converted": 0, "converted_before": 6, "skipped": []}
    assert "converted" in capsys.readouterr().out
    assert all((tmp_path / name).stat().st_mode & 0o044 == 0o044 for name in before), "readable under the usual umask"


def test_workers_change_nothing_but_the_time(raw: Path, tmp_path: Path) -> None:
    assert main(command(raw, tmp_path / "two", "--workers", "2")) == 0
    run(plan_of(raw), tmp_path / "one")
    names = snapshot(tmp_path / "one").keys()
    assert names == snapshot(tmp_path / "two").keys() and len(names) == 2 + 2 * (4 * 3 + 4 + 1)
    assert all((tmp_path / "one" / n).read_bytes() == (tmp_path / "two" / n).read_bytes() for n in names)
    assert summary(tmp_path / "two")[FRAMES]["converted"] == 6


def test_a_dead_worker_is_reported_and_the_rest_kept(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a worker process ended unexpectedly.*fewer --workers"):
        run_plan(toy_plan("good", "die"), tmp_path, WRITERS, 2, lambda *_: None)
    outcome = run(toy_plan("good", "good"), tmp_path)
    assert outcome.total(CLOUD).converted == 6


def test_an_interruption_stops_the_workers_soon(tmp_path: Path) -> None:
    def interrupt(done: int, total: int, note: str) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_plan(toy_plan(*["slow"] * 9), tmp_path, WRITERS, 2, interrupt)
    # Two units at a time, of 100 files in 10 s each.
    assert 0 < len(list(tmp_path.glob("u*/*"))) < 100


class Interrupting:
    """Writes files until a given number is reached, then behaves like Ctrl-C in the middle of the next."""

    def __init__(self, allowed: int) -> None:
        self.allowed = allowed

    def __call__(self, path: Path, write: Callable[[BinaryIO], None]) -> None:
        def torn(stream: BinaryIO) -> None:
            write(stream)
            if self.allowed == 0:
                raise KeyboardInterrupt

        write_atomically(path, torn, durable=False)
        self.allowed -= 1


@pytest.mark.parametrize("allowed", [0, 1, 2, 5, 9, 14, 20])
def test_interrupted_anywhere(allowed: int, raw: Path, tmp_path: Path) -> None:
    """What is there is whole, and a second run gives what one run would have given."""
    run(plan_of(raw), tmp_path / "whole")
    whole = {name: (tmp_path / "whole" / name).read_bytes() for name in snapshot(tmp_path / "whole")}
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run(plan_of(raw), out, WRITERS._replace(quick=Interrupting(allowed)))
    partial_names = snapshot(out).keys()
    assert all((out / name).read_bytes() == whole[name] for name in partial_names)
    assert len(partial_names) < len(whole)
    run(plan_of(raw), out)
    assert {name: (out / name).read_bytes() for name in snapshot(out)} == whole


def _convert_slowly(raw: Path, out: Path) -> None:
    def slow(path: Path, write: Callable[[BinaryIO], None]) -> None:
        def torn(stream: BinaryIO) -> None:
            write(stream)
            stream.flush()
            time.sleep(0.02)

        write_atomically(path, torn, durable=False)

    run(plan_of(raw), out, WRITERS._replace(quick=slow))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed(raw: Path, tmp_path: Path) -> None:
    """SIGKILL leaves no half file under a result's name, and the next run removes what it left."""
    run(plan_of(raw), tmp_path / "whole")
    whole = {name: (tmp_path / "whole" / name).read_bytes() for name in snapshot(tmp_path / "whole")}
    out = tmp_path / "out"
    process = multiprocessing.get_context("fork").Process(target=_convert_slowly, args=(raw, out))
    process.start()
    began = time.monotonic()
    while not list(out.glob("rgbd/*/color/*.jpg")) and time.monotonic() - began < 60:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    left = [path for path in out.rglob("*") if path.is_file() and ".convert" not in path.parts]
    assert {p.name for p in left if not p.name.startswith(".")} <= {Path(name).name for name in whole}
    for path in left:
        assert path.name.endswith(".tmp") or path.read_bytes() == whole[str(path.relative_to(out))]
    # As if it had been killed while it wrote a file, wherever it was.
    (out / "rgbd/scene0000_00/color/.0.jpg.abc.tmp").write_bytes(b"half")
    run(plan_of(raw), out)
    assert {name: (out / name).read_bytes() for name in snapshot(out)} == whole


def test_other_options_replace_the_results(raw: Path, tmp_path: Path) -> None:
    """Nothing of a run with other options stays behind, in particular no scene in another split."""
    out = tmp_path / "out"
    run(plan_of(raw), out)
    (out / "train" / "of_others.pth").write_bytes(b"kept")
    options = ScanNetOptions(raw, split="val", every=2)
    outcome = run(plan_scannet(options), out)
    assert outcome.now[CLOUD].converted == 1 and outcome.before[CLOUD].converted == 1
    assert sorted(p.name for p in out.glob("*/*.pth")) == ["of_others.pth", "scene0000_00.pth", "scene0001_00.pth"]
    assert not (out / "train/scene0000_00.pth").exists()
    assert sorted(p.name for p in (out / "rgbd/scene0000_00/color").iterdir()) == ["0.jpg", "2.jpg"]
    # Without one part the other stays as it is.
    assert run(plan_scannet(ScanNetOptions(raw, split="val", parts=(CLOUD,))), out).now == {}
    assert len(list(out.glob("rgbd/*/color/*"))) == 4


def test_repaired_raw_files_are_converted_and_lost_ones_keep_their_results(raw: Path, tmp_path: Path) -> None:
    root, out = copy_of(raw, tmp_path), tmp_path / "out"
    recording = root / "scans/scene0000_00/scene0000_00.sens"
    content = recording.read_bytes()
    recording.write_bytes(content[:-2000])
    first = run(plan_of(root), out)
    assert reasons(first, FRAMES) == {
        "recording is truncated": first.total(FRAMES).skipped["recording is truncated"].count
    }
    recording.write_bytes(content)
    second = run(plan_of(root), out)
    assert second.now.keys() == {FRAMES} and second.now[FRAMES].converted == 3
    assert second.total(FRAMES).converted == 6 and not second.total(FRAMES).skipped
    recording.unlink()
    third = run(plan_of(root), out)
    assert third.now == {} and third.total(FRAMES).converted == 6


def test_faults_of_ours_are_told_and_tried_again(tmp_path: Path) -> None:
    outcome = run(toy_plan("fail", "good"), tmp_path)
    assert outcome.total(CLOUD).converted == 3 and reasons(outcome, CLOUD) == {"internal error, TypeError": 1}
    assert "a fault of ours" in outcome.total(CLOUD).skipped["internal error, TypeError"].examples[0]
    again = run(toy_plan("good", "good"), tmp_path)
    assert (again.now[CLOUD].converted, again.before[CLOUD].converted) == (3, 3)


def test_nothing_converted_is_an_error(tmp_path: Path) -> None:
    outcome = run(toy_plan("skip", "skip"), tmp_path)
    assert reasons(outcome, CLOUD) == {"all is lost": 6}
    assert len(outcome.total(CLOUD).skipped["all is lost"].examples) == 3
    with pytest.raises(DataError, match=r"nothing could be converted.*\(6 times\): all is lost, u0 0"):
        check_not_empty(outcome)
    with pytest.raises(DataError, match="there was nothing to do"):
        check_not_empty(Outcome())
    # The skips are on record: nothing to do either, and still an error.
    with pytest.raises(DataError, match="all is lost"):
        check_not_empty(run(toy_plan("skip", "skip"), tmp_path))


def test_damage_is_printed_and_listed(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    root, out = copy_of(raw, tmp_path), tmp_path / "out"
    (root / "scans/scene0000_00/scene0000_00_vh_clean_2.ply").unlink()
    recording = root / "scans/scene0001_00/scene0001_00.sens"
    data = recording.read_bytes()
    start = data.index(b"StructureSensor") + 15 + 4 * 64 + 36
    recording.write_bytes(data[:start] + b"\xff" * 64 + data[start + 64 :])
    assert main(command(root, out, "--workers", "1")) == 0
    text = capsys.readouterr().out
    assert (
        "clouds: 1 x mesh is missing, e.g. " in text
        and "frames: 1 x pose is not finite, e.g. scene0001_00 frame 0" in text
    )
    (entry,) = summary(out)[CLOUD]["skipped"]
    assert entry["reason"] == "mesh is missing" and entry["count"] == 1 and "scene0000_00" in entry["examples"][0]
    assert (out / "skip.lst").read_text(encoding="utf-8") == "scene0001_00 0\n"


def fails(arguments: list[str], capsys: pytest.CaptureFixture) -> str:
    assert main(arguments) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and message.count("\n") == 1
    return message


def test_messages(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    assert "--workers: expected at least 1, got 0" in fails(command(raw, out, "--workers", "0"), capsys)
    assert "there is no such folder" in fails(command(tmp_path / "absent", out), capsys)
    assert not out.exists()
    empty = tmp_path / "empty"
    (empty / "scans/scene0000_00").mkdir(parents=True)
    (empty / "splits").symlink_to(raw / "splits")
    (empty / "scannetv2-labels.combined.tsv").symlink_to(raw / "scannetv2-labels.combined.tsv")
    assert "nothing could be converted" in fails(command(empty, out, "--workers", "1"), capsys)
    blocked = tmp_path / "file"
    blocked.write_text("", encoding="utf-8")
    assert "not writable" in fails(command(raw, blocked), capsys)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(output_files.Path, "replace", full)
    assert "cannot be written: No space left on device" in fails(
        command(raw, tmp_path / "full", "--workers", "1"), capsys
    )


def test_quick_and_durable_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []
    monkeypatch.setattr(os, "fsync", synced.append)
    for durable, count in ((False, 0), (True, 1)):
        partial(write_atomically, durable=durable)(tmp_path / "file", lambda stream: stream.write(b"x") and None)
        assert len(synced) == count
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("dataset", ["scannet", "s3dis", "structured3d"])
def test_help(dataset: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["convert", dataset, "--help"])
    assert stop.value.code == 0 and "--workers" in capsys.readouterr().out

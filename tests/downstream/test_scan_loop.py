"""The loop of predict and features: faulty scans are reported, and the others are processed."""

from __future__ import annotations

from pathlib import Path

import pytest

from medcl3d.core.errors import ConfigError, DataError
from medcl3d.downstream.predict.inputs import InputScan
from medcl3d.downstream.predict.scan_loop import ScanLoop

SCANS = [InputScan(name, f"in/{name}", Path(name), Path(f"{name}.txt")) for name in "abcd"]


def loop_of(refused: list[str] | None = None) -> tuple[ScanLoop, list[str]]:
    messages: list[str] = []
    faults = [] if refused is None else refused
    return ScanLoop(SCANS, faults, {"channels": "first"}, "run", "counted", messages.append), messages


def test_faults_of_scans_are_reported_after_the_others_are_processed() -> None:
    loop, messages = loop_of(["earlier: not a series"])
    written: list[tuple[str, int]] = []
    faults = {"b": DataError("b", "two channels", "set channels"), "c": ValueError("of a library")}

    def compute(one: InputScan) -> str:
        if one.name in faults:
            raise faults[one.name]
        return one.name.upper()

    with pytest.raises(DataError, match=r"^3 scans were not counted, 2 were: earlier: not") as caught:
        loop.run(compute, lambda one, result: written.append((result, loop.done)))
    assert written == [("A", 0), ("D", 1)] and caught.value.__cause__ is faults["c"]
    assert messages == [
        "in/b: two channels; the run was trained on scans prepared with channels = first, so repair or leave "
        "out this scan",
        "in/c: cannot be used: ValueError: of a library; inspect the file, and report a bug if it is valid",
    ]


def test_other_errors_of_ours_and_errors_of_writing_end_the_loop() -> None:
    def refuse(one: InputScan) -> str:
        raise ConfigError("the network is of another version")

    def full(one: InputScan, result: str) -> None:
        raise OSError("disk full")

    loop, messages = loop_of()
    with pytest.raises(ConfigError, match="another version"):
        loop.run(refuse, full)
    with pytest.raises(OSError, match="disk full"):
        loop.run(lambda one: "", full)
    assert loop.done == 0 and not messages


def test_a_dry_run_reports_files_and_faults() -> None:
    def refuse(path: Path) -> None:
        if path.name == "b":
            raise DataError("b: is damaged")

    loop, messages = loop_of()
    loop.dry_run(lambda path: None, lambda one: [one.output, Path("more")])
    assert messages[0] == "a would be written to a.txt and more"
    assert messages[-1] == (
        "4 scans would be counted; their headers are valid, voxels were not read; nothing was written"
    )
    loop, messages = loop_of()
    with pytest.raises(DataError, match="1 scans would not be counted, of 4: in/b: is damaged"):
        loop.dry_run(refuse, lambda one: [one.output])
    assert len(messages) == 4


def test_kept_scans_are_counted() -> None:
    loop, messages = loop_of()
    loop.report_kept(4)
    assert not messages
    loop.report_kept(6)
    assert messages == ["2 of 6 scans were counted by this run before and are kept; 4 remaining"]

"""Faults of users and the resulting messages: one row per fault, through the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults import FAULTS
from tests.faults.fault import Fault, meet


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_is_reported_with_its_place_and_remedy(
    fault: Fault, tmp_path: Path, tiny_store: Path
) -> None:
    if {"dicom", "source=dicom"} & set(fault.command):
        pytest.importorskip("pydicom")
    code, output = meet(fault, tmp_path, tiny_store)
    assert code == fault.code, output
    for text in fault.texts:
        assert text in output, output
    for text in (*fault.without, "Traceback"):
        assert text not in output, output
    if code:
        lines = [line for line in output.splitlines() if line.startswith("medcl3d: ")]
        assert len(lines) == 1, output


def test_the_matrix_has_a_row_for_every_fault_of_configurations_and_data() -> None:
    assert {fault.number for fault in FAULTS} == set(range(1, 47))

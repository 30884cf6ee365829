"""One row per measurement in the HParams tab of TensorBoard."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd

from medcl3d.comparison.plan.config import CompareConfig


def write_hparams(table: pd.DataFrame, config: CompareConfig, folder: Path) -> None:
    """Write arm, seed and cell of each row, with the preregistered metrics, to a new folder of event files.

    table  rows of `gather`
    """
    from torch.utils.tensorboard import SummaryWriter
    from torch.utils.tensorboard.summary import hparams

    shutil.rmtree(folder, ignore_errors=True)
    fields = ["arm", "seed", *config.vary]
    metrics = dict.fromkeys([config.metric, *(one.metric or config.metric for one in config.next_endpoints)])
    for number, row in enumerate(table.to_dict("records")):
        given = {name: str(row[name]) for name in fields if name in row}
        measured = {name: float(row[name]) for name in metrics if pd.notna(row.get(name))}
        with SummaryWriter(str(folder / f"{number:04d}")) as board:
            for summary in hparams(given, measured):
                board.file_writer.add_summary(summary)
            for name, value in measured.items():
                board.add_scalar(name, value, 0)

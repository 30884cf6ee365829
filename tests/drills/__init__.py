"""Faults of running trainings: each is caused on a tiny run, which then resumes.

`tests/test_drills.py` asserts every row; `docs/drills.py` causes the same faults and writes them as a table.
"""

from tests.drills.checkpoints import CHECKPOINTS
from tests.drills.disks import DISKS
from tests.drills.loading import LOADING
from tests.drills.ranks import RANKS
from tests.drills.stops import STOPS
from tests.drills.training import TRAINING

DRILLS = [*CHECKPOINTS, *STOPS, *DISKS, *LOADING, *RANKS, *TRAINING]

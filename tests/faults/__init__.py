"""Faults of user input, each built in its own folder and triggered through the command line.

`tests/test_faults.py` asserts every row; `docs/reliability.py` runs the same rows and writes them as a table.
"""

from tests.faults.configuration import CONFIGURATION
from tests.faults.manifests import MANIFESTS
from tests.faults.metadata import METADATA
from tests.faults.volumes import VOLUMES

FAULTS = [*CONFIGURATION, *MANIFESTS, *VOLUMES, *METADATA]

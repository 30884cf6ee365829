"""Options of `prepare`: separated between source and preparation, and errors for invalid ones."""

from __future__ import annotations

import pytest

from medcl3d.config.loading import read_options
from medcl3d.core.errors import ConfigError
from medcl3d.preprocessing.options import prepare_options


def test_options_are_separated_between_source_and_preparation() -> None:
    given = prepare_options(
        "simulated",
        read_options(["num_patients=6", "shape=[32,32,32]", "seed=3", "workers=2", "spacing_mm=[2,2,4.5]"]),
    )
    assert given.fields["num_patients"] == 6 and tuple(given.fields["shape"]) == (32, 32, 32)
    assert given.fields["seed"] == given.options.seed == 3
    assert given.options.workers == 2 and given.options.spacing_mm == (2.0, 2.0, 4.5)


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("simulate", [], "did you mean 'simulated'"),
        ("simulated", ["num_patient=6"], "num_patient: unknown option; did you mean 'num_patients'"),
        ("simulated", ["workers=-1"], "workers = -1: input should be greater than or equal to 0"),
        ("simulated", ["num_patients=many"], "num_patients = 'many'"),
        ("simulated", ["num_patients"], "write key.path=value"),
        (
            "simulated",
            ["seed=4294967296"],
            "prepare simulated: seed = 4294967296: input should be less than or equal to 4294967295",
        ),
        (
            "bids",
            ["spacing_mm=2"],
            "prepare bids: spacing_mm = 2: expected: keep or median or 3 numbers > 0; write [2, 2, 2]",
        ),
        ("bids", ["spacing_mm=medain"], "spacing_mm = 'medain': expected: keep or median or 3 numbers > 0"),
        ("bids", ["spacing_mm=[2,2,nan]"], "spacing_mm.2 = 'nan': input should be a valid number"),
        ("bids", ["spacing_mm=[2,2,.nan]"], "spacing_mm.2 = nan: not a finite number"),
        ("bids", ["spacing_mm=[2,2]"], "spacing_mm.2: an item is missing"),
        (
            "bids",
            ["percentiles=[99,1]"],
            "prepare bids: percentiles: the first, 99.0, must be below the second, 1.0",
        ),
        (
            "bids",
            ["modalities=T1w"],
            "prepare bids: modalities = 'T1w': expected: list of words or null; write [T1w]",
        ),
    ],
)
def test_an_invalid_option_is_named(source: str, options: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        prepare_options(source, read_options(options))
    assert message in str(error.value)

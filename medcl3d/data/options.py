"""Which of the options given beside a source are the source's own, and which say how to prepare."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic.dataclasses import dataclass as validated

from medcl3d.config import STRICT, choice_of, describe, parse
from medcl3d.data.prepare import PrepareOptions
from medcl3d.data.sources import SOURCES
from medcl3d.errors import ConfigError
from medcl3d.registry import Choice


@validated(frozen=True, config=STRICT)
class _Chosen:
    source: choice_of(SOURCES)  # type: ignore[valid-type]


@dataclass(frozen=True)
class Given:
    """The fields of the source, defaults filled in, and the options of the preparation."""

    fields: Mapping[str, Any]
    options: PrepareOptions


def prepare_options(source: str, given: Mapping[str, Any]) -> Given:
    """Check and share out what was given; `seed`, where the source has one too, goes to both.

    ConfigError: unknown source, key or value.
    """
    if source not in SOURCES.names():
        parse({"source": source}, _Chosen, "prepare")  # says which sources there are
    own = [spec.name for spec in describe(SOURCES, source)]
    common = [f.name for f in dataclasses.fields(PrepareOptions)]
    for key in given:
        if key not in own and key not in common:
            near = difflib.get_close_matches(key, [*own, *common], n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}? " if near else ""
            listed = f"of {source}: {', '.join(own) or 'none'}; of any source: {', '.join(common)}"
            raise ConfigError(f"prepare {source}: {key}: unknown option; {hint}{listed}")
    fields: Choice = parse({"source": {source: {k: v for k, v in given.items() if k in own}}}, _Chosen, "prepare").source
    options = parse({k: v for k, v in given.items() if k in common}, PrepareOptions, f"prepare {source}")
    return Given(fields.fields, options)

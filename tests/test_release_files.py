"""The files of a release agree with the package: version, formatter, container files, workflow."""

from __future__ import annotations

import configparser
import re
from pathlib import Path

import yaml

from medcl3d.core.version import __version__

ROOT = Path(__file__).parents[1]


def test_changelog_and_citation_have_the_version_and_its_date() -> None:
    heading = re.search(r"^## \[(.+)\] - (\d{4}-\d\d-\d\d)$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert heading is not None
    assert heading.groups() == (__version__, citation["date-released"])
    assert citation["version"] == __version__
    assert {"cff-version", "message", "title", "authors"} <= set(citation)


def test_the_workflow_runs_all_checks_with_the_python_versions_of_the_package() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    job = workflow["jobs"]["checks"]
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    assert (ROOT / ".ci/run").stat().st_mode & 0o100
    listed = setup["metadata"]["classifiers"]
    assert all(f"Python :: {version}" in listed for version in job["strategy"]["matrix"]["python"])


def test_hooks_use_the_formatter_of_make_lint() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    pinned = re.search(r"ruff (==\S+)", (ROOT / "setup.cfg").read_text())
    assert pinned is not None
    assert {one for hook in hooks for one in hook["additional_dependencies"] if "ruff" in one} == {
        f"ruff{pinned[1]}"
    }


def test_forms_and_compose_file_name_what_exists() -> None:
    for form in ("bug.yml", "strategy.yml"):
        content = yaml.safe_load((ROOT / ".github/ISSUE_TEMPLATE" / form).read_text())
        assert content["name"] and all({"type", "attributes"} <= set(field) for field in content["body"])
    compose = ROOT / "docker/compose.yaml"
    services = yaml.safe_load(compose.read_text())["services"]
    build = services["pretrain"]["build"]
    assert (compose.parent / build["context"] / build["dockerfile"]).is_file()
    assert services["tensorboard"]["image"] == services["pretrain"]["image"]
    assert all(one.endswith((":/project", ":/project:ro")) for s in services.values() for one in s["volumes"])

"""The commands as a user types them: output, error messages and exit codes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from medcl3d.catalogue import names_of
from medcl3d.cli import app, main
from medcl3d.config.key_value import as_pairs
from medcl3d.config.kinds import CONFIGS, KINDS
from medcl3d.core.errors import ConfigError, DataError, MachineError, Stopped, UserError

ROOT = Path(__file__).parents[1]
COMMANDS = (
    "download",
    "init",
    "prepare",
    "check",
    "pretrain",
    "finetune",
    "evaluate",
    "predict",
    "features",
    "export",
    "compare",
    "show_pairs",
    "audit",
    "status",
    "doctor",
    "suggest",
    "view",
    "benchmark",
    "list",
    "schema",
)
HEAVY = ("torch", "monai", "torchio", "pandas", "scipy", "sklearn", "matplotlib", "nibabel", "skimage")


def medcl3d(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def seconds(*code: str, times: int) -> float:
    """The shortest of several times, since the machine may be busy."""
    best = float("inf")
    for _ in range(times):
        start = time.perf_counter()
        subprocess.run([sys.executable, *code], cwd=ROOT, check=True, capture_output=True)
        best = min(best, time.perf_counter() - start)
    return best


@pytest.mark.parametrize("command", ["predict", "features"])
def test_a_command_whose_ranks_would_repeat_each_other_is_refused_under_torchrun(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    done = medcl3d(command, "run", "scans", "--out", "out")
    assert done.exit_code == 2 and f"{command} runs in one process; start it without torchrun" in done.stderr


@pytest.mark.parametrize(("arguments", "code"), [(["list", "pairs"], 0), (["check", "no such place"], 3)])
@pytest.mark.parametrize("rank", [False, True])
def test_a_rank_exits_with_its_output_and_code_and_without_interpreter_shutdown(
    arguments: list[str], code: int, rank: bool
) -> None:
    program = (
        "import atexit; from medcl3d.cli import main; atexit.register(print, 'interpreter shut "
        f"down'); main({arguments!r})"
    )
    environment = {key: value for key, value in os.environ.items() if key != "RANK"} | (
        {"RANK": "0"} if rank else {}
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == code, done.stderr
    assert "overlapping_crops" in done.stdout if code == 0 else "no such place" in done.stderr
    assert ("interpreter shut down" in done.stdout) is not rank


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_describes_every_command(command: str) -> None:
    done = medcl3d(*command.split(), "--help")
    assert done.exit_code == 0
    assert all(name in done.output for name in ([command] if command else COMMANDS))


@pytest.mark.parametrize("command", COMMANDS)
def test_help_imports_nothing_heavy(command: str) -> None:
    code = (
        f"import sys; from medcl3d.cli import main\ntry: main(['{command}', '--help'])\nfinally: "
        "print(*sys.modules, file=sys.stderr)"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stderr.split()
    assert "medcl3d.core.errors" in loaded
    assert not set(HEAVY) & set(loaded)


def test_help_is_faster_than_the_import_of_torch() -> None:
    assert seconds("-m", "medcl3d", "--help", times=3) < 0.5 * seconds("-c", "import torch", times=1)


def test_an_unknown_command_is_refused_with_the_nearest() -> None:
    done = medcl3d("pretrian", "a.yaml")
    assert done.exit_code == 2
    assert "'pretrain'" in done.output


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[tuple[Any, ...]]]:
    """Arguments of the functions behind `pretrain` and `compare`, which are replaced."""
    calls: list[tuple[Any, ...]] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("medcl3d.pretraining.pretrain.pretrain", lambda *arguments: calls.append(arguments))
    monkeypatch.setattr("medcl3d.comparison.compare.compare", lambda *arguments: calls.append(arguments))
    yield calls


def test_options_may_precede_and_follow_overrides(called: list[tuple[Any, ...]], tmp_path: Path) -> None:
    config = tmp_path / "a.yaml"
    config.touch()
    assert medcl3d("pretrain", config, "--check", "train.steps=1", "seed=2").exit_code == 0
    assert medcl3d("pretrain", config, "train.lr=-1").exit_code == 0
    assert medcl3d("pretrain", "--time", config).exit_code == 0
    assert called == [
        (config, ["train.steps=1", "seed=2"], True, False),
        (config, ["train.lr=-1"], False, False),
        (config, [], False, True),
    ]


def test_compare_accepts_an_expanded_glob(called: list[tuple[Any, ...]], tmp_path: Path) -> None:
    config = tmp_path / "a.yaml"
    config.touch()
    assert medcl3d("compare", config, "jobs=2", "--from", "runs/a", "runs/b", "runs/c").exit_code == 0
    assert medcl3d("compare", config, "runs/b").exit_code == 0
    assert called[0] == (
        config,
        ["jobs=2"],
        False,
        [Path("runs/a"), Path("runs/b"), Path("runs/c")],
        None,
        None,
    )
    (tmp_path / "num_labelled=2").mkdir()
    assert medcl3d("compare", config, "jobs=2", "--from", "runs/a", "num_labelled=2").exit_code == 0
    assert called[2] == (config, ["jobs=2"], False, [Path("runs/a"), Path("num_labelled=2")], None, None), (
        "a folder with = in its name"
    )
    assert called[1] == (config, ["runs/b"], False, [], None, None), (
        "without --from it is a wrong override, which the configuration refuses"
    )


@pytest.mark.parametrize(
    "name",
    [
        "pretrain/simulated_overlap",
        "pretrain/simulated_overlap.yaml",
        "configs/pretrain/simulated_overlap.yaml",
    ],
)
def test_a_packaged_configuration_is_found_by_name_and_reported(
    called: list[tuple[Any, ...]], name: str
) -> None:
    done = medcl3d("pretrain", name)
    assert done.exit_code == 0
    path = called[0][0]
    assert path == ROOT / "configs/pretrain/simulated_overlap.yaml"
    assert str(path) in done.stderr and "packaged" in done.stderr


def test_a_local_file_precedes_a_packaged_one(called: list[tuple[Any, ...]], tmp_path: Path) -> None:
    own = tmp_path / "configs/pretrain/simulated_overlap.yaml"
    own.parent.mkdir(parents=True)
    own.touch()
    done = medcl3d("pretrain", "configs/pretrain/simulated_overlap.yaml")
    assert called[0][0] == Path("configs/pretrain/simulated_overlap.yaml") and done.stderr == ""


def test_a_missing_configuration_is_answered_with_similar_names() -> None:
    done = medcl3d("pretrain", "pretrain/simulated_overlaps")
    assert done.exit_code == 2
    assert "similar names: pretrain/simulated_overlap" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("error", "code"), [(UserError, 1), (ConfigError, 2), (DataError, 3), (MachineError, 4), (Stopped, 75)]
)
def test_a_mistake_ends_with_one_line_and_its_code(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: type[UserError], code: int
) -> None:
    def fail(*_: object) -> None:
        raise error("the file\nis wrong; fix it")

    monkeypatch.setattr("medcl3d.pretraining.pretrain.pretrain", fail)
    done = medcl3d("pretrain", tmp_path)
    assert (done.exit_code, done.stderr, done.stdout) == (code, "medcl3d: the file is wrong; fix it\n", "")
    monkeypatch.setenv("MEDCL3D_DEBUG", "1")
    assert "Traceback" in medcl3d("pretrain", tmp_path).stderr


def test_an_interrupt_ends_with_130(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("medcl3d.pretraining.pretrain.pretrain", interrupt)
    done = medcl3d("pretrain", tmp_path)
    assert (done.exit_code, done.stderr) == (130, "medcl3d: interrupted\n")


@pytest.mark.parametrize("kind", [*KINDS, "sets", "layouts", "configs"])
def test_list_names_and_describes_all_components(kind: str) -> None:
    lines = medcl3d("list", kind).stdout.splitlines()
    assert lines
    for line in lines:
        name, about = line.split(maxsplit=1)
        assert len(about) > 10, line
        done = medcl3d("list", kind, name)
        assert done.exit_code == 0 and len(done.stdout.splitlines()) >= 3


def test_list_alone_names_the_kinds() -> None:
    lines = medcl3d("list").stdout.splitlines()
    assert [line.split()[0] for line in lines] == [*KINDS, "sets", "layouts", "configs"]


def test_list_shows_fields_with_types_and_defaults() -> None:
    output = medcl3d("list", "pairs", "overlapping_crops").stdout
    assert "Source:" in output
    assert any(
        line.split() == ["min_iou", "number", ">=", "0", "<=", "1,", "default", "0.3"]
        for line in output.splitlines()
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ("pears",),
        ("pairs", "overlaping_crops"),
        ("sets", "task04_hippocampus"),
        ("configs", "pretrain/simulated_overla"),
    ],
)
def test_list_answers_an_unknown_name_with_the_nearest(arguments: tuple[str, ...]) -> None:
    done = medcl3d("list", *arguments)
    assert done.exit_code == 2 and "did you mean" in done.stderr


@pytest.mark.parametrize("kind", CONFIGS)
def test_schema_is_complete(kind: str) -> None:
    schema = json.loads(medcl3d("schema", kind).stdout)
    assert schema["type"] == "object" and schema["additionalProperties"] is False
    for reference in references(schema):
        assert reference.removeprefix("#/$defs/") in schema["$defs"]
    assert "x-choice-of" not in json.dumps(schema)


def fields_of(node: object) -> Iterator[tuple[str, object]]:
    """All fields in a JSON Schema, with their schemas."""
    if isinstance(node, dict):
        yield from node.get("properties", {}).items()
    for inner in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from fields_of(inner)


@pytest.mark.parametrize("kind", CONFIGS)
def test_every_field_of_a_schema_has_a_description(kind: str) -> None:
    found = list(fields_of(json.loads(medcl3d("schema", kind).stdout)))
    assert len(found) > 30
    assert [name for name, spec in found if not (isinstance(spec, dict) and spec.get("description"))] == []


def test_schema_expands_choices() -> None:
    schema = json.loads(medcl3d("schema", "pretrain").stdout)
    assert schema["properties"]["pairs"]["$ref"] == "#/$defs/medcl3d.pairs"
    forms = schema["$defs"]["medcl3d.pairs"]["oneOf"]
    written = {next(iter(form["properties"])): form for form in forms if "properties" in form}
    assert set(written) == set(names_of("pairs"))
    crops = written["overlapping_crops"]["properties"]["overlapping_crops"]
    assert crops["additionalProperties"] is False and crops["properties"]["min_iou"]["maximum"] == 1
    assert {"overlapping_crops", "augmented_views"} <= {form.get("const") for form in forms}


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        yield from (value for key, value in node.items() if key == "$ref")
    for inner in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from references(inner)


def test_show_pairs_draws_a_picture(tiny_store: Path, tmp_path: Path) -> None:
    overrides = [f"data.root={tiny_store}", "pairs=augmented_views", "train.samples_per_step=4"]
    done = medcl3d(
        "show_pairs",
        ROOT / "configs/pretrain/simulated_overlap.yaml",
        *overrides,
        "--out",
        tmp_path / "new" / "a.png",
    )
    assert done.exit_code == 0, done.output
    assert (tmp_path / "new" / "a.png").read_bytes().startswith(b"\x89PNG")
    assert (
        medcl3d(
            "show_pairs", ROOT / "configs/pretrain/simulated_overlap.yaml", "--out", tmp_path / "a.jpg"
        ).exit_code
        == 2
    )


def test_check_accepts_a_store_and_names_a_changed_file(tiny_store: Path, tmp_path: Path) -> None:
    assert medcl3d("check", tiny_store).exit_code == 0
    copy = tmp_path / "store"
    shutil.copytree(tiny_store, copy)
    voxels = sorted(path for path in (copy / "store").glob("*.npy") if "label" not in path.name)[0]
    content = bytearray(voxels.read_bytes())
    content[-1] ^= 1
    voxels.write_bytes(content)
    done = medcl3d("check", copy, "--report", tmp_path / "report.csv")
    assert done.exit_code == 3 and voxels.name in done.stderr and "changed after preparing" in done.stderr
    assert "changed after preparing" in (tmp_path / "report.csv").read_text()


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("csv . --out o --store blosc2", "csv . --out o store=blosc2"),
        ("--store=blosc2 csv . --out=o", "csv . --out=o store=blosc2"),
        ("csv --spacing-mm [2,2,2] . crop=body", "csv . crop=body spacing_mm=[2,2,2]"),
        (
            "csv . --chek --out o",
            "csv . --chek --out o",
        ),  # similar to an option of the command, which typer names
        ("csv . --fold -1 -h", "csv . -h fold=-1"),
        ("csv . -- --store", "csv . -- --store"),
    ],
)
def test_a_field_may_be_written_as_an_option(typed: str, meant: str) -> None:
    assert as_pairs(typed.split(), ["--out", "--check", "--help", "-h"]) == meant.split()


def test_an_option_without_a_value_is_answered_with_the_form_of_a_field(tmp_path: Path) -> None:
    done = medcl3d("prepare", "dicom", tmp_path, "--out", tmp_path / "o", "--hash-ids")
    assert done.exit_code == 2 and "hash_ids=VALUE" in " ".join(done.output.split())
    done = medcl3d("prepare", "csv", tmp_path, "--out", tmp_path / "o", "--store", "zip")
    assert done.exit_code == 2 and "store = 'zip'" in done.stderr


def test_root_may_be_omitted_for_simulated_scans(tmp_path: Path) -> None:
    for root in ((), ("-",)):
        done = medcl3d("prepare", "simulated", *root, "num_patients=2", "--out", tmp_path / "o", "--check")
        assert done.exit_code == 0 and "of 2 patients" in done.output, done.output
    done = medcl3d("prepare", "simulated", "num_patient=2", "--out", tmp_path / "o")
    assert done.exit_code == 2 and "num_patient: unknown option; did you mean 'num_patients'?" in done.stderr


def test_a_root_may_contain_an_equals_sign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = medcl3d("prepare", "csv", "q=2/m.csv", "--out", "o")
    assert (done.exit_code, done.stderr) == (
        3,
        "medcl3d: q=2/m.csv: no such file or folder; give ROOT, which csv reads, before any KEY=VALUE\n",
    )
    Path("q=2").mkdir()
    Path("q=2/m.csv").write_text("path,patient\na.nii.gz,1\n")
    done = medcl3d("prepare", "csv", "q=2/m.csv", "--out", "o")
    assert done.exit_code == 3 and "q=2/a.nii.gz: there is no such file" in done.stderr
    done = medcl3d("prepare", "csv", "q=2/m.csv", "--out", "o", "stoer=npy")
    assert done.exit_code == 2 and "prepare csv: stoer: unknown option; did you mean 'store'?" in done.stderr


@pytest.mark.parametrize(
    "command", ["download", "prepare", "pretrain", "finetune", "evaluate", "predict", "compare", "show_pairs"]
)
def test_long_commands_have_a_dry_run(command: str) -> None:
    assert "--check" in medcl3d(command, "--help").output


def config_of(folder: Path, store: Path) -> Path:
    from tests.faults.build import config

    config()(folder, store)
    return folder / "c.yaml"


def test_check_finds_an_unwritable_folder_and_a_too_long_warmup(tiny_store: Path, tmp_path: Path) -> None:
    config = config_of(tmp_path, tiny_store)
    (tmp_path / "file").touch()
    done = medcl3d("pretrain", config, "--check", f"out_dir={tmp_path / 'file'}", "train.warmup_steps=10")
    assert done.exit_code == 4 and done.stderr == (
        f"medcl3d: command line: out_dir = {tmp_path / 'file'}: {tmp_path / 'file'} is not a folder; "
        "choose another path\n"
    )
    assert "train.warmup_steps = 10 exceeds train.steps = 2" in done.stdout
    done = medcl3d("pretrain", config, "--check", "out_dir=/proc/run")
    assert done.exit_code == 4 and "cannot write in /proc" in done.stderr
    done = medcl3d("show_pairs", config, "--check", "--out", tmp_path / "a.png")
    assert done.exit_code == 0 and not (tmp_path / "a.png").exists(), done.output
    assert medcl3d("show_pairs", config, "--check", "--out", "/proc/a.png").exit_code == 4


def test_a_tilde_that_the_shell_does_not_expand_is_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.faults.build import good

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    good(tmp_path)
    assert medcl3d("prepare", "csv", "~", "--out=~/store", "workers=1").exit_code == 0
    assert (tmp_path / "store" / "prepared.json").exists() and not (tmp_path / "~").exists()


@pytest.mark.parametrize(("rank", "number"), [("0", 1), ("1", 0)])
def test_only_the_first_rank_prints_warnings(monkeypatch: pytest.MonkeyPatch, rank: str, number: int) -> None:
    monkeypatch.setattr("medcl3d.cli.app", lambda **_: warnings.warn("a notice", stacklevel=1))
    monkeypatch.setenv("RANK", rank)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        main([])
    assert len(found) == number

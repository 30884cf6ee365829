"""Command line. Each command imports its code when it runs, so that ``--help`` is fast."""

from __future__ import annotations

import functools
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, ParamSpec

import typer
from typer.core import TyperCommand

from medcl3d.config.key_value import WithOptions
from medcl3d.config.kinds import CONFIGS
from medcl3d.core.errors import ConfigError, DataError, UserError
from medcl3d.core.monai_on_demand import import_on_demand
from medcl3d.core.version import __version__
from medcl3d.io.encoding import escape_unencodable, unwritable

P = ParamSpec("P")

INTERRUPTED = 130  # 128 + SIGINT, what shells report
OVERRIDES_HELP = (
    "Fields to set, each as `key.path=value`, for example `train.steps=100`. Text and paths are used as "
    "typed, without quotes; other values are YAML, for example `[1, 2]`. `null` clears an optional field."
)


def _argument(metavar: str, text: str) -> Any:
    return typer.Argument(metavar=metavar, help=text, show_default=False)


def _option(name: str, metavar: str | None, text: str) -> Any:
    return typer.Option(name, metavar=metavar, help=text)


Texts = list[str] | None
Config = Annotated[
    str,
    _argument("CONFIG", "A YAML file, or the name of a packaged configuration, for example `pretrain/mine`."),
]
Overrides = Annotated[Texts, _argument("KEY=VALUE", OVERRIDES_HELP)]
Check = Annotated[
    bool, _option("--check", None, "Dry run: validate the configuration and the data; run nothing.")
]
Encoder = Annotated[
    Path | None,
    _option("--encoder", "RUN", "A finished pretraining, for strategies whose pairs depend on features."),
]
Scans = Annotated[Path, _argument("SCANS", "A NIfTI file, or a folder of NIfTI files and DICOM series.")]
Intensity = Annotated[
    str | None, _option("--intensity", "KIND", "mri, ct or none; required if the run has several.")
]
Force = Annotated[bool, _option("--force", None, "Replace existing files.")]
CheckScans = Annotated[
    bool,
    _option(
        "--check", None, "Dry run: read the run and the headers, report what would be written; write nothing."
    ),
]

app = typer.Typer(
    help="Contrastive pretraining on 3-D medical scans, and comparison of pair strategies.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def report(message: str) -> None:
    """Print one line to stderr, with the name of the program."""
    print(f"medcl3d: {' '.join(message.split())}", file=sys.stderr, flush=True)


def command(function: Callable[P, None], cls: type[TyperCommand] | None = None) -> Callable[P, None]:
    """Register a function as a command: a UserError ends it with one line and its exit code."""

    # With typer's default name, show_pairs would be show-pairs.
    @app.command(name=function.__name__.rstrip("_"), cls=cls)
    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        given: dict[str, Any] = {name: at_home(value) for name, value in kwargs.items()}
        try:
            function(*args, **given)
        except (UserError, KeyboardInterrupt, UnicodeEncodeError) as error:
            if os.environ.get("MEDCL3D_DEBUG") == "1":
                traceback.print_exc()
            if isinstance(error, KeyboardInterrupt):
                report("interrupted")
                raise typer.Exit(INTERRUPTED) from None
            found = unwritable(error) if isinstance(error, UnicodeEncodeError) else error
            report(message_of(found, given, function.__name__))
            raise typer.Exit(found.exit_code) from None

    return run


command_with_pairs = functools.partial(command, cls=WithOptions)


def at_home(value: Any) -> Any:
    """Expand a path that begins with ~/, since shells do not expand ``--out=~/x`` or quoted paths."""
    return value.expanduser() if isinstance(value, Path) and value.parts[:1] == ("~",) else value


def message_of(error: UserError, given: dict[str, Any], command: str) -> str:
    """The message of an error, with file and line if it is about a field of the command's configuration."""
    if given.get("config") is None:
        return str(error)
    from medcl3d.config.loading import locate
    from medcl3d.config.overrides import schemas_at
    from medcl3d.config.packaged import find_config

    try:
        path = find_config(given["config"])
    except UserError:
        return str(error)
    overrides = [text for text in given["overrides"] or [] if "=" in text]
    locate(error, path, overrides, schemas_at(CONFIGS.get(command, CONFIGS["pretrain"])))
    return str(error)


def config_path(name: str) -> Path:
    """The configuration file for `name`; a packaged one is reported on stderr. ConfigError if none exists."""
    from medcl3d.config.packaged import find_config

    path = find_config(name)
    if path != Path(name):
        report(f"{name} is not a file here; reading the packaged configuration {path}")
    return path


@command
def download(
    name: Annotated[str, _argument("NAME", "A public data set; `medcl3d list sets` lists them.")],
    out: Annotated[Path, _option("--out", "DIR", "Folder for the downloaded file and its content.")],
    check: Annotated[
        bool,
        _option(
            "--check", None, "Dry run: report the download and check the disk space; open no connection."
        ),
    ] = False,
) -> None:
    """Download a public data set, verify and unpack it. The same command resumes."""
    from medcl3d.datasets.download import download as run
    from medcl3d.datasets.download import dry_run
    from medcl3d.datasets.public_sets import find_set

    (dry_run if check else run)(find_set(name), out, say=print)


@command
def init(
    target: Annotated[Path, _argument("PATH", "A folder of raw scans, or a table that lists them.")],
    out: Annotated[
        Path | None,
        _option("--out", "DIR", "Folder for the files (default: a new one, named after PATH)."),
    ] = None,
    force: Force = False,
) -> None:
    """Describe raw scans, propose a table and configurations for them, and list the next commands."""
    from medcl3d.proposal.init import init as run

    run(target, out, force=force)


@command_with_pairs
def prepare(
    source: Annotated[str, _argument("SOURCE", "Type of the source; `medcl3d list sources` lists them.")],
    root: Annotated[
        str,
        _argument(
            "ROOT", "The folder or file that the source reads; - for a source without one (simulated)."
        ),
    ],
    out: Annotated[
        Path, _option("--out", "DIR", "Folder for the manifest, the report, the split and the store.")
    ],
    options: Annotated[
        Texts,
        _argument(
            "KEY=VALUE",
            "Fields of the source (`medcl3d list sources NAME`) or of the preparation, for example "
            "`spacing_mm=[2,2,2]`, `workers=2`.",
        ),
    ] = None,
    check: Annotated[
        bool,
        _option(
            "--check",
            None,
            "Dry run: read the source and the headers, report what would be prepared; write nothing.",
        ),
    ] = False,
) -> None:
    """Validate scans and write them to a store for fast training. The same command resumes."""
    from medcl3d.config.loading import read_options
    from medcl3d.preprocessing.options import option_schemas, prepare_options

    # ROOT is optional for `simulated`: the first option may replace it.
    if source == "simulated" and "=" in root and not Path(root).exists():
        root, options = "-", [root, *(options or [])]
    given = prepare_options(source, read_options(options or [], option_schemas(source)))
    if "=" in root and not at_home(Path(root)).exists():
        raise DataError(
            root, "no such file or folder", f"give ROOT, which {source} reads, before any KEY=VALUE"
        )
    place = None if root == "-" else at_home(Path(root))
    if check:
        from medcl3d.preprocessing.dry_run import dry_run

        dry_run(source, place, out, given.fields, given.options, say=print)
        return
    from medcl3d.preprocessing.prepare import prepare as run

    run(source, place, out, fields=given.fields, options=given.options, say=print)


@command_with_pairs
def check(
    target: Annotated[Path, _argument("PATH", "A prepared store, a table, or a folder of raw scans.")],
    options: Annotated[
        Texts,
        _argument(
            "KEY=VALUE",
            "`source=NAME` and its fields if the source of PATH is not detected, "
            "`max_bad_fraction=0.01`, `workers=2`, `nonfinite=zero`, `channels=all`.",
        ),
    ] = None,
    report: Annotated[
        Path | None,
        _option(
            "--report",
            "PATH",
            "FILE.csv for one row per scan; a folder for the same, a page with pictures, and a cache "
            "for later checks.",
        ),
    ] = None,
) -> None:
    """Validate every file. Exit code 3, with the first fault, if more files fail than `max_bad_fraction`
    allows.
    """
    from medcl3d.config.loading import read_options
    from medcl3d.quality.source_detection import option_schemas_at

    given = read_options(options or [], option_schemas_at(target, options or []))
    from medcl3d.quality.check import audit

    audit(target, report=report, given=given, say=print)


@command
def pretrain(
    config: Config,
    overrides: Overrides = None,
    check: Check = False,
    time: Annotated[
        bool, _option("--time", None, "Dry run with a few steps, to report the time of a run.")
    ] = False,
) -> None:
    """Pretrain an encoder. The same command resumes. Also runs under torchrun."""
    path = config_path(config)
    from medcl3d.pretraining.pretrain import pretrain as run

    run(path, overrides or [], check, time)


@command
def finetune(config: Config, overrides: Overrides = None, check: Check = False) -> None:
    """Fine-tune a pretrained encoder, or train from scratch, and measure it on the test patients."""
    path = config_path(config)
    from medcl3d.downstream.finetune import finetune as run

    run(path, overrides or [], check)


@command
def evaluate(config: Config, overrides: Overrides = None, check: Check = False) -> None:
    """Evaluate a frozen encoder: linear probe, nearest neighbours, retrieval."""
    path = config_path(config)
    from medcl3d.downstream.evaluate import evaluate as run

    run(path, overrides or [], check)


@command
def predict(
    run: Annotated[Path, _argument("RUN", "Run folder of a finished fine-tuning for segmentation.")],
    target: Scans,
    out: Annotated[Path, _option("--out", "PATH", "A .nii.gz file for one scan, otherwise a folder.")],
    probabilities: Annotated[
        bool, _option("--probabilities", None, "Also write NAME_probabilities.nii.gz.")
    ] = False,
    intensity: Intensity = None,
    force: Force = False,
    check: CheckScans = False,
) -> None:
    """Segment new scans, with labels on each scan's own grid. The same command resumes."""
    from medcl3d.distributed.collectives import require_one_process
    from medcl3d.downstream.predict.predict import predict as run_

    require_one_process("predict")
    run_(
        run,
        target,
        out,
        probabilities=probabilities,
        intensity=intensity,
        force=force,
        check=check,
        say=report,
    )


@command
def features(
    run: Annotated[Path, _argument("RUN", "The folder of a finished pretraining.")],
    target: Scans,
    out: Annotated[Path, _option("--out", "DIR", "A folder for the features.")],
    file_format: Annotated[
        str,
        _option("--format", "FORMAT", "safetensors: one file per scan; csv: one table, features.csv."),
    ] = "safetensors",
    dense: Annotated[
        bool, _option("--dense", None, "A map on each scan's own grid, not one vector per scan.")
    ] = False,
    intensity: Intensity = None,
    force: Force = False,
    check: CheckScans = False,
) -> None:
    """Write a pretrained encoder's features of new scans. Run the command again to resume."""
    from medcl3d.distributed.collectives import require_one_process
    from medcl3d.downstream.features import write_features

    require_one_process("features")
    write_features(
        run,
        target,
        out,
        file_format=file_format,
        dense=dense,
        intensity=intensity,
        force=force,
        check=check,
        say=report,
    )


@command
def export(
    run: Annotated[Path, _argument("RUN", "The folder of a finished pretraining or fine-tuning.")],
    to: Annotated[
        str,
        _option("--to", "FORMAT", "safetensors, onnx, torch_export, nnunet, monai or hub."),
    ],
    out: Annotated[Path, _option("--out", "DIR", "A new or empty folder for the files.")],
    licence: Annotated[
        str,
        _option(
            "--licence", "TEXT", "Licence of the weights, as that of the data allows: an SPDX identifier."
        ),
    ] = "unknown",
    with_provenance: Annotated[
        bool,
        _option("--with-provenance", None, "Also write keyed hashes of patients and scans, never their ids."),
    ] = False,
) -> None:
    """Write the weights of a finished run for other programs."""
    from medcl3d.exports.export import export as run_

    run_(run, to, out, licence=licence, with_provenance=with_provenance, say=report)


@command
def compare(
    config: Config,
    overrides: Annotated[
        Texts, _argument("KEY=VALUE", f"{OVERRIDES_HELP} After `--from`, also further run folders.")
    ] = None,
    check: Check = False,
    from_runs: Annotated[
        list[Path] | None,
        _option(
            "--from",
            "RUN",
            "Report on finished runs without starting any: a run folder, a folder of them, or an archive.",
        ),
    ] = None,
    pack: Annotated[
        Path | None,
        _option("--pack", "FILE.jsonl.xz", "Also write an archive of the finished runs, without weights."),
    ] = None,
    restore: Annotated[
        Path | None,
        _option("--restore", "FILE.jsonl.xz", "First restore the finished runs of an archive into out_dir."),
    ] = None,
) -> None:
    """Run a comparison, or its missing runs, and write the report."""
    path = config_path(config)
    from medcl3d.comparison.compare import compare as run

    # `--from runs/*`: the shell passes the second and further folders as plain arguments.
    more = [text for text in overrides or [] if from_runs and ("=" not in text or Path(text).exists())]
    fields = [text for text in overrides or [] if text not in more]
    run(path, fields, check, [*(from_runs or []), *map(Path, more)], pack, restore)


@command
def show_pairs(
    config: Config,
    overrides: Overrides = None,
    out: Annotated[Path, _option("--out", "FILE.png", "File of the picture.")] = Path("pairs.png"),
    html: Annotated[bool, _option("--html", None, "Also write FILE.html, a self-contained page.")] = False,
    encoder: Encoder = None,
    check: Check = False,
) -> None:
    """Show the pairs of a strategy: anchors, what attracts and repels them and why, and the relation of a
    batch, with counts.
    """
    path = config_path(config)
    from medcl3d.pretraining.show_pairs import show_pairs as run

    run(path, overrides or [], out, page=html, encoder=encoder, check=check)


@command
def view(
    target: Annotated[
        Path, _argument("TARGET", "A prepared store, a finished run, or the out_dir of a comparison.")
    ],
    out: Annotated[Path, _option("--out", "FILE.html", "File of the page.")],
    overrides: Annotated[
        Texts, _argument("KEY=VALUE", "Fields of the runs, as `data.root=PATH` if the store was moved.")
    ] = None,
    scans: Annotated[int, _option("--scans", "N", "Number of scans.")] = 4,
) -> None:
    """Write one offline page to view scans in three planes, with views, features or predictions of runs."""
    from medcl3d.viewer.view import view as run

    run(target, out, overrides or [], scans, say=report)


@command
def audit(
    config: Config,
    overrides: Overrides = None,
    by: Annotated[
        str,
        _option(
            "--by", "COLUMN", "structures: compare label maps; or a column of the manifest with classes."
        ),
    ] = "structures",
    encoder: Encoder = None,
    batches: Annotated[int, _option("--batches", "N", "Number of batches.")] = 20,
    out: Annotated[
        Path | None,
        _option("--out", "FILE.json", "File for the figures; pairs of patients are written to FILE.csv."),
    ] = None,
    check: Check = False,
) -> None:
    """Measure how many pairs of a strategy join the same structure or class, without training."""
    path = config_path(config)
    from medcl3d.pretraining.pair_audit import audit as run

    run(path, overrides or [], by=by, encoder=encoder, batches=batches, out=out, check=check)


@command
def status(
    folders: Annotated[list[Path], _argument("DIR", "Run folders, or the out_dir of comparisons.")],
) -> None:
    """Show state, step, loss and time left of runs, and why others failed."""
    from medcl3d.comparison.status import status as run

    run(folders)


@command
def doctor(
    config: Annotated[
        str | None,
        _argument(
            "CONFIG",
            "A pretraining configuration, to estimate its memory too; or a run with train.profile, to find "
            "what takes long.",
        ),
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Report versions, devices and limits of this machine, and what makes runs slow or fail."""
    path = None if config is None else Path(config) if Path(config).is_dir() else config_path(config)
    from medcl3d.doctor import doctor as run

    run(path, overrides or [])


@command
def suggest(
    store: Annotated[Path, _argument("STORE", "A prepared store.")],
    out: Annotated[
        Path | None, _option("--out", "FILE.yaml", "Also write a comparison of the usable strategies.")
    ] = None,
    audit: Annotated[
        bool, _option("--audit", None, "Also measure how many pairs join the same structure or class.")
    ] = False,
    size: Annotated[
        str | None,
        _option("--size", "SIZE", "mine for a GPU, mine_small for a CPU; default by whether there is a GPU."),
    ] = None,
) -> None:
    """Report which pair strategies the scans of a store can train, and how to measure them."""
    from medcl3d.comparison.suggest.suggest import suggest as run

    run(store, out, audit=audit, size=size)


@command
def benchmark(
    names: Annotated[Texts, _argument("NAME", "Benchmarks to run; default all.")] = None,
    out: Annotated[Path | None, _option("--out", "FILE", "A .md or .json file for the figures.")] = None,
) -> None:
    """Measure time and memory of performance-critical code on this machine."""
    try:
        from benchmarks import benchmark as run
    except ImportError:
        raise ConfigError(
            problem="the benchmarks are not installed with the package",
            remedy="run `python tools/benchmark.py` in a checkout",
            place="benchmark",
        ) from None

    run(names or [], out)


@command
def list_(
    kind: Annotated[
        str | None, _argument("KIND", "pairs, views, encoders, objectives, sources, tasks, sets or configs.")
    ] = None,
    name: Annotated[str | None, _argument("NAME", "A name, to show its fields, defaults and source.")] = None,
) -> None:
    """List the kinds, the names of a kind, or the fields of one name."""
    from medcl3d.catalogue import descriptions_of, explain, kinds

    if kind is None:
        print(kinds())
    else:
        print(descriptions_of(kind) if name is None else explain(kind, name))


@command
def schema(kind: Annotated[str, _argument("KIND", "pretrain, finetune, evaluate or compare.")]) -> None:
    """Print the JSON Schema of a configuration, for editors."""
    from medcl3d.catalogue import schema_of

    print(schema_of(kind))


def _version(wanted: bool) -> None:
    if wanted:
        print(f"medcl3d {__version__}")
        raise typer.Exit


@app.callback()
def _program(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Contrastive pretraining on 3-D medical scans, and comparison of pair strategies."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command (by default from sys.argv) and end the process with its exit code."""
    escape_unencodable()
    import_on_demand()
    if os.environ.get("RANK", "0") != "0":
        warnings.simplefilter("ignore")  # the first rank prints the same ones
    try:
        app(args=None if arguments is None else [*arguments], prog_name="medcl3d")
    except SystemExit as done:
        if "RANK" not in os.environ or not isinstance(done.code, int):
            raise
        # A rank has written its output. During interpreter shutdown, a thread of the process group that still
        # needs the interpreter may abort the process, and torchrun then reports a finished run as failed.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(done.code)

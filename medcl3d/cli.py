"""The commands. Each imports what it runs when it runs, so that ``--help`` answers at once."""

from __future__ import annotations

import functools
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, ParamSpec

import typer
from typer.core import TyperCommand

import medcl3d
from medcl3d.encoding import show_any_text, unwritable
from medcl3d.errors import DataError, UserError
from medcl3d.key_value import WithOptions

P = ParamSpec("P")

INTERRUPTED = 130  # 128 + SIGINT, what shells report
OVERRIDES_HELP = (
    "Fields to set, each `key.path=value`, as in `train.steps=100`. Text and paths are taken as they are typed, without quotes around "
    "them; other values are YAML, as `[1, 2]`. `null` is none, for a field that may be."
)

Config = Annotated[str, typer.Argument(metavar="CONFIG", help="A YAML file, or the name of a packaged one, as in `pretrain/mine`.")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help=OVERRIDES_HELP, show_default=False)]
Check = Annotated[bool, typer.Option("--check", help="Check the configuration and the data; run nothing.")]

app = typer.Typer(
    help="Contrastive pretraining on 3-D medical scans that compares ways to define pairs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def say(message: str) -> None:
    """One line on stderr in the name of the program."""
    print(f"medcl3d: {' '.join(message.split())}", file=sys.stderr, flush=True)


def command(function: Callable[P, None], cls: type[TyperCommand] | None = None) -> Callable[P, None]:
    """Make a command of a function: a user's mistake ends it with one line and its exit code."""

    @app.command(name=function.__name__.rstrip("_"), cls=cls)  # typer itself would make show_pairs show-pairs
    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        given: dict[str, Any] = {name: at_home(value) for name, value in kwargs.items()}
        try:
            function(*args, **given)
        except (UserError, KeyboardInterrupt, UnicodeEncodeError) as error:
            if os.environ.get("MEDCL3D_DEBUG") == "1":
                traceback.print_exc()
            error = unwritable(error) if isinstance(error, UnicodeEncodeError) else error
            say(told(error, given) if isinstance(error, UserError) else "interrupted")
            raise typer.Exit(error.exit_code if isinstance(error, UserError) else INTERRUPTED) from None

    return run


command_with_pairs = functools.partial(command, cls=WithOptions)


def at_home(value: Any) -> Any:
    """A path that begins with ~/ as the one in the home folder: of ``--out=~/x`` and of quoted paths a shell makes no such thing."""
    return value.expanduser() if isinstance(value, Path) and value.parts[:1] == ("~",) else value


def told(error: UserError, given: dict[str, Any]) -> str:
    """An error in words; where it is about a field of the command's configuration, with the file and the line."""
    if "config" not in given:
        return str(error)
    from medcl3d.config import with_line
    from medcl3d.packaged_configs import find_config

    try:
        path = find_config(given["config"])
    except UserError:
        return str(error)
    return with_line(str(error), path, [text for text in given["overrides"] or [] if "=" in text])


def config_path(name: str) -> Path:
    """The file that `name` means, said aloud where it is a packaged one. ConfigError where there is none."""
    from medcl3d.packaged_configs import find_config

    path = find_config(name)
    if path != Path(name):
        say(f"{name} is not a file here; reading the packaged configuration {path}")
    return path


@command
def download(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A public set; `medcl3d list sets` names them.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the file and the folder that it becomes go.")],
    check: Annotated[
        bool, typer.Option("--check", help="Say what would be fetched, and whether there is room; open no connection.")
    ] = False,
) -> None:
    """Fetch a public set, check it and unpack it; the same command again goes on where it stopped."""
    from medcl3d.data.download import download as run
    from medcl3d.data.download import forecast
    from medcl3d.data.known_sets import find_set

    (forecast if check else run)(find_set(name), out, say=print)


@command_with_pairs
def prepare(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="Where the scans come from; `medcl3d list sources` names them.")],
    root: Annotated[
        str, typer.Argument(metavar="ROOT", help="The folder or file that the source reads; - where there is none (simulated).")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the manifest, the report, the split and the store go.")],
    options: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE",
            help="Fields of the source (`medcl3d list sources NAME`) or of the preparation, as in `spacing_mm=[2,2,2]`, `workers=2`.",
            show_default=False,
        ),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Read the source and the headers, say what would be prepared; write nothing.")
    ] = False,
) -> None:
    """Check scans and write them as a store that trains fast; the same command again goes on where it stopped."""
    from medcl3d.config import read_options
    from medcl3d.data.options import option_schemas, prepare_options

    if source == "simulated" and "=" in root and not Path(root).exists():  # it needs no ROOT: the first option may stand in its place
        root, options = "-", [root, *(options or [])]
    given = prepare_options(source, read_options(options or [], option_schemas(source)))
    if "=" in root and not at_home(Path(root)).exists():
        raise DataError(f"{root}: there is no such file or folder; give ROOT, which {source} reads, before any KEY=VALUE")
    place = None if root == "-" else at_home(Path(root))
    if check:
        from medcl3d.data.forecast import forecast

        forecast(source, place, out, given.fields, given.options, say=print)
        return
    from medcl3d.data.prepare import prepare as run

    run(source, place, out, fields=given.fields, options=given.options, say=print)


@command_with_pairs
def check(
    target: Annotated[Path, typer.Argument(metavar="PATH", help="What `prepare` wrote, a table, or a folder as it lies on a disk.")],
    options: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE",
            help="`source=NAME` and its fields where PATH does not say what it is, `max_bad_fraction=0.01`, `workers=2`, "
            "`nonfinite=zero`, `channels=all`.",
            show_default=False,
        ),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            "--report",
            metavar="PATH",
            help="FILE.csv for a row a scan; a folder for that, a page with pictures, and a faster next time.",
            show_default=False,
        ),
    ] = None,
    only_say: Annotated[bool, typer.Option("--check", help="Say what would be read; read nothing.")] = False,
) -> None:
    """Check that every file is what it says; exit code 3, with the first fault, where more are not than may be."""
    from medcl3d.config import read_options
    from medcl3d.data.place import schemas_at

    given = read_options(options or [], schemas_at(target, options or []))
    if only_say:
        from medcl3d.data.forecast import forecast_check

        forecast_check(target, report, given, say=print)
        return
    from medcl3d.data.audit import audit

    audit(target, report=report, given=given, say=print)


@command
def pretrain(config: Config, overrides: Overrides = None, check: Check = False) -> None:
    """Pretrain an encoder; the same command again resumes. Runs under torchrun too."""
    path = config_path(config)
    from medcl3d.training.pretrain import pretrain as run

    run(path, overrides or [], check)


@command
def finetune(config: Config, overrides: Overrides = None, check: Check = False) -> None:
    """Fine-tune a pretrained encoder, or train from scratch, and measure it on the test patients."""
    path = config_path(config)
    from medcl3d.downstream.finetune import finetune as run

    run(path, overrides or [], check)


@command
def evaluate(config: Config, overrides: Overrides = None, check: Check = False) -> None:
    """Ask a frozen encoder what it knows: linear probe, nearest neighbours, retrieval."""
    path = config_path(config)
    from medcl3d.downstream.evaluate import evaluate as run

    run(path, overrides or [], check)


@command
def predict(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished fine-tuning for segmentation.")],
    target: Annotated[Path, typer.Argument(metavar="INPUT", help="A NIfTI file, or a folder of NIfTI files and DICOM series.")],
    out: Annotated[Path, typer.Option("--out", metavar="PATH", help="A file .nii.gz for one scan, else a folder.")],
    probabilities: Annotated[bool, typer.Option("--probabilities", help="Also write NAME_probabilities.nii.gz.")] = False,
    intensity: Annotated[
        str | None,
        typer.Option("--intensity", metavar="KIND", help="mri, ct or none, where the run learnt from several.", show_default=False),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace files that are there.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Read the run and the headers, say what would be written; write nothing.")] = False,
) -> None:
    """Segment new scans; labels lie on each scan's own grid. The same command again goes on where one was stopped."""
    from medcl3d.downstream.predict import predict as run_

    run_(run, target, out, probabilities=probabilities, intensity=intensity, force=force, check=check, say=say)


@command
def features(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished pretraining.")],
    target: Annotated[Path, typer.Argument(metavar="SCANS", help="A NIfTI file, or a folder of NIfTI files and DICOM series.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="A folder for the features.")],
    file_format: Annotated[
        str,
        typer.Option("--format", metavar="FORMAT", help="safetensors: one file per scan; csv: one table, features.csv."),
    ] = "safetensors",
    dense: Annotated[bool, typer.Option("--dense", help="A map on each scan's own grid, not one vector per scan.")] = False,
    intensity: Annotated[
        str | None,
        typer.Option("--intensity", metavar="KIND", help="mri, ct or none, if the run was trained on several.", show_default=False),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace files that exist.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Read headers, report what would be written; write nothing.")] = False,
) -> None:
    """Write a pretrained encoder's features of new scans. The same command again resumes."""
    from medcl3d.downstream.features import write_features

    write_features(run, target, out, file_format=file_format, dense=dense, intensity=intensity, force=force, check=check, say=say)


@command
def compare(
    config: Config,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help=f"{OVERRIDES_HELP} After `--from`, further runs.", show_default=False),
    ] = None,
    check: Check = False,
    from_runs: Annotated[
        list[Path] | None,
        typer.Option("--from", metavar="RUN", help="Report on finished runs and start none; run folders, or folders of them."),
    ] = None,
) -> None:
    """Run a whole comparison, or what is missing of it, and write its report."""
    path = config_path(config)
    from medcl3d.comparison import compare as run

    # `--from runs/*`: the shell makes the second and further folders plain arguments.
    more = [text for text in overrides or [] if from_runs and ("=" not in text or Path(text).exists())]
    run(path, [text for text in overrides or [] if text not in more], check, [*(from_runs or []), *map(Path, more)] or None)


@command
def show_pairs(
    config: Config,
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option("--out", metavar="FILE.png", help="Where the picture goes.")] = Path("pairs.png"),
    html: Annotated[bool, typer.Option("--html", help="Also write a page beside it, FILE.html, which needs no other file.")] = False,
    check: Check = False,
) -> None:
    """Draw what a pair strategy draws: boxes on the scans, views, and the relation of a batch as a matrix, with counts."""
    path = config_path(config)
    from medcl3d.training.show_pairs import show_pairs as run

    run(path, overrides or [], out, page=html, check=check)


@command
def benchmark(
    names: Annotated[list[str] | None, typer.Argument(metavar="NAME", help="Which ones; all by default.", show_default=False)] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="A .md or .json file to write the figures to.", show_default=False)
    ] = None,
) -> None:
    """Measure time and memory of the hot paths on this machine."""
    from medcl3d.benchmarks import benchmark as run

    run(names or [], out)


@command
def list_(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="pairs, views, encoders, objectives, sources, tasks, sets or configs.")],
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="One of them: its fields, defaults and source.", show_default=False)
    ] = None,
) -> None:
    """Name what there is of a kind, or explain one."""
    from medcl3d.catalogue import explain, names_of

    print("\n".join(names_of(kind)) if name is None else explain(kind, name))


@command
def schema(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="pretrain, finetune, evaluate or compare.")],
) -> None:
    """Print the JSON Schema of a configuration, for editors."""
    from medcl3d.catalogue import schema_of

    print(schema_of(kind))


def _version(wanted: bool) -> None:
    if wanted:
        print(f"medcl3d {medcl3d.__version__}")
        raise typer.Exit


@app.callback()
def _program(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """Contrastive pretraining on 3-D medical scans that compares ways to define pairs."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command (by default the one of this process) and end the process with its exit code."""
    show_any_text()
    try:
        app(args=None if arguments is None else [*arguments], prog_name="medcl3d")
    except SystemExit as done:
        if "RANK" not in os.environ or not isinstance(done.code, int):
            raise
        # A rank has written all it has to. While the interpreter is taken down, a thread of the process group that still
        # asks for it aborts the process now and then, and torchrun then calls a finished run failed.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(done.code)

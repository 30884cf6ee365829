"""Known factors that each strategy keeps and drops: ``make recovery`` writes recovery.md and its rows.

Every strategy is pretrained with the configuration of its page, one small encoder, and the same steps and
scans, like its
placebo; an untrained encoder is added. Linear probes then predict the factors from the frozen features of
test patients.
The command resumes: an arm that has its predictions is not run again. With names of strategies, only these
(with their placebos) are run, and the rows of all others are kept.
"""

from __future__ import annotations

import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from draw import configuration, pages
from sklearn.linear_model import RidgeCV

from medcl3d.config.loading import load
from medcl3d.distributed.precision import autocast_dtype
from medcl3d.downstream.crop_dataset import Example, mean_outputs
from medcl3d.downstream.probes import Labelled, LinearProbe, standardiser
from medcl3d.downstream.tasks.structure_at_centre import StructureAtCentre
from medcl3d.downstream.transfer import load_weights
from medcl3d.encoders.network import Network, build_network
from medcl3d.evaluation.metrics.classification import balanced_accuracy
from medcl3d.io.atomic import open_atomic, write_text
from medcl3d.pairs import PAIRS, traits_of
from medcl3d.pretraining.config import PretrainConfig
from medcl3d.pretraining.pretrain import pretrain
from medcl3d.store.splits import read_split
from medcl3d.store.store import Store

HERE = Path(__file__).parent
DATA, RUNS = Path("data/recovery"), Path("runs/recovery")
ROWS, TABLE = HERE.parent / "results" / "recovery.csv", HERE / "recovery.md"
SETTINGS = (
    f"data.root={DATA}",
    "encoder={unet3d: {channels: [16, 32, 64, 128], strides: [2, 2, 2, 2]}}",
    "train.samples_per_step=16",
    "train.warmup_steps=10",
    "train.lr=1e-3",
)
# At most two minutes on one core; a decoder at full resolution takes most of the time. Arms and controls have
# equal steps.
STEPS = {"simclr": 600, "dense": 110}
CROPS_PER_SCAN = 20
RESAMPLES = 1000
RIDGE = (1.0, 10.0, 100.0, 1000.0, 10_000.0)
UNTRAINED = "untrained"
FACTORS = ("structure", "position", "patient", "age", "site", "modality")
NUMBERS = ("position", "age")
# Expected effects of a strategy relative to its control (its placebo; `augmented_views` if it has none), with
# the reason.
EXPECTED = {
    ("same_patient", "patient"): ("keeps", "two scans of one patient attract"),
    ("same_patient", "modality"): ("drops", "half of the pairs are of two modalities"),
    ("longitudinal", "patient"): ("keeps", "two visits of one patient attract"),
    ("cross_modality", "modality"): ("drops", "the two views of a pair differ in it"),
    ("slice_position", "position"): ("keeps", "slabs at similar positions attract"),
    ("body_position", "position"): ("keeps", "points at similar positions in the body attract"),
    ("adjacent_slices", "position"): ("keeps", "only adjacent slabs attract"),
    ("voxel_correspondence", "structure"): ("keeps", "only views of one physical point attract"),
    ("metadata_kernel", "age"): ("keeps", "scans of similar age attract"),
    ("tabular_neighbours", "age"): ("keeps", "the second view is of a patient of similar age"),
    ("tabular_neighbours", "patient"): ("drops", "the two views of a pair are of two patients"),
    ("region_points", "structure"): ("keeps", "points of one structure attract"),
    ("composed_kernels", "site"): ("drops", "scans of one site attract less and repel more"),
    ("composed_kernels", "age"): ("keeps", "scans of similar age attract"),
    ("time_decay", "patient"): ("keeps", "two visits of one patient attract beyond a budget"),
    ("class_labels", "patient"): ("drops", "patients of one class attract"),
}


@dataclass(frozen=True)
class Question:
    """One factor: true values, the patient of each, and predictions of a probe from features."""

    truth: np.ndarray
    patients: np.ndarray
    predict: Callable[[np.ndarray], np.ndarray]


class Questions:
    """The same crops and factors for all arms: crops centred on structures of training and test scans."""

    def __init__(self, store: Store, patch_size: tuple[int, int, int]):
        self.store, table = store, store.collection.table
        task = StructureAtCentre(structures=5, crops_per_scan=CROPS_PER_SCAN)
        self.examples: list[Example] = task.examples(store, list(range(len(store))), patch_size)
        split = read_split(DATA / "split.json", table["patient"])
        self.scan = np.array([example.scan for example in self.examples])
        self.structure = np.array([example.target for example in self.examples])
        centres = np.array([example.boxes[0].center for example in self.examples])
        self.position = store.collection.body.place(self.scan, store.collection.world(self.scan, centres))
        self.patient = table["patient"].astype(str).to_numpy()
        self.train, self.test = (np.isin(self.patient, list(side)) for side in (split.train, split.test))

    def of(self, factor: str) -> Question:
        """The prediction task of a factor from features ``[crops, F]``."""
        train, test = self.train[self.scan], self.test[self.scan]
        if factor == "structure":
            return self._classes(self.structure, self.scan, train, test, np.arange(len(self.scan)))
        if factor == "position":
            position = self.position
            return Question(
                position[test],
                self.patient[self.scan[test]],
                lambda x: _ridge(x[train], position[train], x[test]),
            )
        if factor == "patient":
            return self._patients()
        column = self.store.collection.table[factor]
        if factor == "age":
            age = column.astype(float).to_numpy()

            def of_age(x: np.ndarray) -> np.ndarray:
                scans = self._of_scans(x)
                return _ridge(scans[self.train], age[self.train], scans[self.test])

            return Question(age[self.test], self.patient[self.test], of_age)
        return self._classes(pd.factorize(column)[0], np.arange(len(column)), self.train, self.test, None)

    def _of_scans(self, x: np.ndarray) -> np.ndarray:
        """The mean over each scan's crops."""
        return np.array(pd.DataFrame(x).groupby(self.scan).mean())

    def _classes(
        self,
        truth: np.ndarray,
        scan: np.ndarray,
        train: np.ndarray,
        test: np.ndarray,
        crops: np.ndarray | None,
    ) -> Question:
        """Train on patients of the training side and predict those of the test side; per scan if `crops` is
        None.
        """

        def predict(x: np.ndarray) -> np.ndarray:
            x = self._of_scans(x) if crops is None else x
            known = Labelled(x[train], truth[train], tuple(self.patient[scan[train]]))
            return LinearProbe().probabilities(known, x[test], int(truth.max()) + 1, 0)

        return Question(truth[test], self.patient[scan[test]], predict)

    def _patients(self) -> Question:
        """Identify test patients: train on first visits, predict last ones, averaged over the crops of a
        scan.
        """
        table = self.store.collection.table
        session = table["session"].astype(int).to_numpy()
        of_patient = pd.Series(session).groupby(self.patient)
        first, last = (of_patient.transform(which).to_numpy() for which in ("min", "max"))
        usable = self.test & (first < last)
        names, code = np.unique(self.patient[usable], return_inverse=True)
        codes = np.full(len(session), -1)
        codes[usable] = code
        train, test = usable & (session == first), usable & (session == last)

        def predict(x: np.ndarray) -> np.ndarray:
            rows = train[self.scan]
            known = Labelled(x[rows], codes[self.scan[rows]], tuple(self.patient[self.scan[rows]]))
            probe = LinearProbe(inverse_strengths=(1e-2,))
            probabilities = probe.probabilities(known, x[test[self.scan]], len(names), 0)
            return np.array(pd.DataFrame(probabilities).groupby(self.scan[test[self.scan]]).mean())

        return Question(codes[test], self.patient[test], predict)


def _ridge(train: np.ndarray, truth: np.ndarray, test: np.ndarray) -> np.ndarray:
    scale = standardiser(train)
    predicted: np.ndarray = RidgeCV(RIDGE).fit(scale.transform(train), truth).predict(scale.transform(test))
    return predicted


def score(factor: str, predicted: np.ndarray, truth: np.ndarray) -> float:
    """R2 of numbers (mean over axes), balanced accuracy of classes."""
    if factor not in NUMBERS:
        return balanced_accuracy(predicted, truth)
    return float(np.mean(1 - np.square(predicted - truth).mean(0) / truth.var(0)))


def draws(patients: np.ndarray) -> Iterator[np.ndarray]:
    """Rows of patients drawn with replacement; a patient's rows stay together."""
    owner = np.unique(patients, return_inverse=True)[1]
    rows = [np.flatnonzero(owner == i) for i in range(owner.max() + 1)]
    rng = np.random.default_rng(0)
    for _ in range(RESAMPLES):
        yield np.concatenate([rows[i] for i in rng.integers(len(rows), size=len(rows))])


def arms() -> Iterator[tuple[str, Path | None, bool]]:
    """Name, page and whether it is a placebo; the shared control comes first after the untrained encoder."""
    yield UNTRAINED, None, False
    for page in sorted(pages(), key=lambda page: page.stem != "augmented_views"):
        yield page.stem, page, False
        config = load_page(page, ())
        if traits_of(PAIRS.build(config.pairs)).signal_columns:
            yield f"{page.stem} (placebo)", page, True


def load_page(page: Path, overrides: tuple[str, ...]) -> PretrainConfig:
    """The configuration of a page."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{page.stem}.yaml"
        path.write_text(configuration(page), encoding="utf-8")
        return load(path, overrides, PretrainConfig)


def encoder_of(page: Path | None, run: Path, is_placebo: bool) -> tuple[Network, float]:
    """The network of an arm, pretrained unless it is the untrained one, and the seconds of pretraining."""
    config = load_page(page or HERE / "augmented_views.md", SETTINGS)
    torch.manual_seed(config.seed)
    network = build_network(config.encoder, 1, decoder=False)
    if page is None:
        return network, 0.0
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{page.stem}.yaml"
        path.write_text(configuration(page), encoding="utf-8")
        steps = STEPS[config.objective.name]
        pretrain(
            path, (*SETTINGS, f"train.steps={steps}", f"out_dir={run}", f"placebo={str(is_placebo).lower()}")
        )
    load_weights(network, run, "encoder", [])
    return network, time.monotonic() - started


def predictions(
    name: str, page: Path | None, is_placebo: bool, questions: Questions
) -> dict[str, np.ndarray]:
    """The probes' predictions of each factor from an arm's features; saved on disk."""
    run = RUNS / re.sub(r"\W+", "_", name).strip("_")
    file = run / "predictions.npz"
    if not file.is_file():
        run.mkdir(parents=True, exist_ok=True)
        network, seconds = encoder_of(page, run, is_placebo)
        device = torch.device("cpu")
        dtype = autocast_dtype("auto", device)
        x = mean_outputs(
            lambda crops: network.eval()(crops).pooled, questions.store, questions.examples, device, dtype
        )
        predicted = {factor: questions.of(factor).predict(x) for factor in FACTORS}
        with open_atomic(file) as out:
            np.savez(out, seconds=np.array(seconds), **predicted)
    with np.load(file, allow_pickle=False) as found:
        return {key: found[key] for key in (*FACTORS, "seconds")}


def table_of(predicted: dict[str, dict[str, np.ndarray]], questions: Questions) -> pd.DataFrame:
    """One row per arm and factor: the score with a 95% interval over patients, and the difference to the
    control.
    """
    rows = []
    for factor in FACTORS:
        question = questions.of(factor)
        chosen = list(draws(question.patients))
        drawn = {
            name: np.array([score(factor, one[factor][d], question.truth[d]) for d in chosen])
            for name, one in predicted.items()
        }
        for name, one in predicted.items():
            placebo = f"{name} (placebo)"
            control = UNTRAINED if name in (UNTRAINED, "augmented_views") else "augmented_views"
            control = placebo if placebo in predicted else control
            value = score(factor, one[factor], question.truth)
            row = {"arm": name, "factor": factor, "score": value, "seconds": float(one["seconds"])}
            row |= dict(zip(("low", "high"), np.percentile(drawn[name], [2.5, 97.5]).tolist(), strict=True))
            if control in predicted and control != name:
                difference = value - score(factor, predicted[control][factor], question.truth)
                row |= {"control": control, "difference": difference}
                limits = np.percentile(drawn[name] - drawn[control], [2.5, 97.5]).tolist()
                row |= dict(zip(("difference_low", "difference_high"), limits, strict=True))
            rows.append(row)
    return pd.DataFrame(rows)


def chance(factor: str, questions: Questions) -> str:
    """The score at chance level."""
    return "0" if factor in NUMBERS else f"{1 / len(np.unique(questions.of(factor).truth)):.2f}"


def page_of(table: pd.DataFrame, questions: Questions) -> str:
    """The page: the table of scores and the expected effects with their results."""
    cell = {(row.arm, row.factor): row for row in table.itertuples()}
    names = list(dict.fromkeys(table["arm"]))
    lines = [f"| arm | {' | '.join(FACTORS)} |", f"| --- |{' --- |' * len(FACTORS)}"]
    for name in names:
        cells = [
            f"{c.score:.2f} ({c.low:.2f} to {c.high:.2f})" for c in (cell[name, factor] for factor in FACTORS)
        ]
        label = f"[{name}]({name}.md)" if (HERE / f"{name}.md").is_file() else name
        lines.append(f"| {label} | {' | '.join(cells)} |")
    lines.append(f"| chance | {' | '.join(chance(factor, questions) for factor in FACTORS)} |")
    header = "| strategy | factor | expected | reason | difference to its control | found |"
    found = [header, "| --- | --- | --- | --- | --- | --- |"]
    for (name, factor), (what, why) in EXPECTED.items():
        if name not in names:
            continue
        c = cell[name, factor]
        sign = 1 if what == "keeps" else -1
        low, high = sorted((sign * c.difference_low, sign * c.difference_high))
        verdict = "yes" if low > 0 else "no: the opposite" if high < 0 else "not distinguishable from 0"
        difference = f"{c.difference:+.2f} ({c.difference_low:+.2f} to {c.difference_high:+.2f})"
        found.append(f"| {name} | {factor} | {what} it | {why} | {difference} | {verdict} |")
    template = (HERE / "recovery.md.in").read_text(encoding="utf-8")
    seconds = table["seconds"].max()
    steps = ", ".join(f"{number} with {objective}" for objective, number in STEPS.items())
    return template.format(
        table="\n".join(lines),
        expected="\n".join(found),
        seconds=f"{seconds:.0f}",
        settings="\n".join(SETTINGS),
        steps=steps,
    )


def main(names: list[str]) -> None:
    """Run the missing arms (of those named; all by default), then write the rows and the page.

    Rows of arms that are not named are kept.
    """
    store = Store.open(DATA)
    questions = Questions(store, load_page(HERE / "augmented_views.md", SETTINGS).data.patch_size)
    predicted: dict[str, dict[str, np.ndarray]] = {}
    for name, page, is_placebo in arms():
        if names and name.removesuffix(" (placebo)") not in names:
            continue
        with redirect_stdout(sys.stderr):
            predicted[name] = predictions(name, page, is_placebo, questions)
        print(f"{name}: pretrained in {float(predicted[name]['seconds']):.0f} s", flush=True)
    table = table_of(predicted, questions).round(
        4
    )  # rounded like the saved rows, so that page and rows agree
    if names:
        table = merged(pd.read_csv(ROWS), table)
    ROWS.parent.mkdir(exist_ok=True)
    write_text(ROWS, table.to_csv(index=False, float_format="%.4f"))
    write_text(TABLE, page_of(table, questions))
    print(TABLE)


def merged(before: pd.DataFrame, new: pd.DataFrame) -> pd.DataFrame:
    """Rows of earlier runs with those of new ones in their place, by factor in the order of `arms`.

    ValueError if an arm has no rows.
    """
    both = pd.concat([before[~before["arm"].isin(new["arm"])], new])
    order = [(factor, name) for factor in FACTORS for name, _, _ in arms()]
    missing = sorted({name for _, name in order} - set(both["arm"]))
    if missing:
        raise ValueError(f"{ROWS}: has no rows of {', '.join(missing)}; name them too")
    rows = both.set_index(["factor", "arm"]).loc[order].reset_index()
    return rows[list(before.columns)]


if __name__ == "__main__":
    main(sys.argv[1:])

"""Faults 1 to 12: configurations."""

from __future__ import annotations

from tests.faults.build import appended, config, edited, put, text_of
from tests.faults.fault import PRETRAIN, Fault

BOMB = "a0: &a0 1\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 11))

CONFIGURATION = [
    Fault(1, "missing configuration", lambda *_: None, ("pretrain", "none.yaml"), ["none.yaml", "no such file", "list configs"], 2),
    Fault(1, "empty configuration", text_of(""), PRETRAIN, ["c.yaml:1", "is empty", "seed: 0", "configs/"], 2),
    Fault(1, "list at the root", text_of("- 1\n"), PRETRAIN, ["c.yaml:1", "is a list", "seed: 0"], 2),
    Fault(2, "syntax error", appended("a: [1\n"), PRETRAIN, ["c.yaml:", "not YAML", "quote"], 2),
    Fault(2, "tab", appended("\tseed: 1\n"), PRETRAIN, ["c.yaml:26:1", "not YAML", "indent with spaces"], 2),
    Fault(2, "control character", appended("a: \0\n"), PRETRAIN, ["c.yaml", "not YAML", "#x0000"], 2),
    Fault(3, "unknown key", appended("sed: 1\n"), PRETRAIN, ["c.yaml:26: sed = 1", "unknown key", "did you mean 'seed'"], 2),
    Fault(4, "duplicate key", appended("seed: 1\nseed: 2\n"), PRETRAIN, ["c.yaml:27: seed:", "lines 26 and 27", "keep one"], 2),
    Fault(
        5,
        "1e-4 is a number",
        lambda f, t: (config()(f, t), edited("c.yaml", lambda c: c.replace("steps: 2", "steps: 2\n  lr: 1e-4"))(f)),
        PRETRAIN,
        ["overlapping_crops with simclr"],
        0,
    ),
    Fault(6, "no is text", appended("placebo: no\n"), PRETRAIN, ["c.yaml:26: placebo = 'no'", "quote it", "true/false"], 2),
    Fault(6, "010 is text", appended("seed: 010\n"), PRETRAIN, ["c.yaml:26: seed = '010'", "quote it"], 2),
    Fault(6, "12:30 is text", appended("seed: 12:30\n"), PRETRAIN, ["c.yaml:26: seed = '12:30'", "quote it"], 2),
    Fault(7, "NaN", put("train", "lr", value=float("nan")), PRETRAIN, ["train.lr = nan", "not a finite number"], 2),
    Fault(7, "infinite", put("train", "lr", value=float("inf")), PRETRAIN, ["train.lr = inf", "not a finite number"], 2),
    Fault(7, "negative", put("train", "lr", value=-1.0), PRETRAIN, ["train.lr = -1.0", "greater than 0"], 2),
    Fault(7, "zero", put("train", "steps", value=0), PRETRAIN, ["train.steps = 0", "greater than or equal to 1"], 2),
    Fault(7, "number of 5000 digits", appended("seed: " + "9" * 5000 + "\n"), PRETRAIN, ["c.yaml:26: seed:", "5000 digits"], 2),
    Fault(
        8,
        "python object",
        appended("seed: !!python/object:os.system x\n"),
        PRETRAIN,
        ["c.yaml:26: seed =", "tags are refused", "plain value"],
        2,
    ),
    Fault(9, "recursive alias", text_of("a: &x [*x]\n"), PRETRAIN, ["c.yaml:1: a.0:", "contains itself", "write the values out"], 2),
    Fault(9, "aliases that unfold without end", text_of(BOMB), PRETRAIN, ["c.yaml", "100000 values", "fewer aliases"], 2),
    Fault(9, "nested without end", text_of("a: " + "[" * 5000), PRETRAIN, ["c.yaml", "nested"], 2),
    Fault(9, "oversized file", text_of("#" * 1_100_000), PRETRAIN, ["c.yaml: 1100000 bytes", "is it the right file?"], 2),
    Fault(
        10,
        "patch and stride",
        put("data", "patch_size", value=[16, 16, 15]),
        PRETRAIN,
        ["data.patch_size = [16, 16, 15]", "stride of the encoder", "[16, 16, 16] would do"],
        2,
    ),
    Fault(
        10,
        "batch of one with NT-Xent",
        put("train", "samples_per_step", value=1),
        PRETRAIN,
        ["train.samples_per_step = 1", "objective.simclr", "2 or more"],
        2,
    ),
    Fault(
        11,
        "metadata absent",
        put("pairs", value={"metadata_kernel": {"columns": {"bmi": 2.0}}}),
        PRETRAIN,
        ["metadata_kernel", "'bmi'", "there are"],
        3,
    ),
    Fault(
        12,
        "override of an unknown key",
        config(),
        (*PRETRAIN, "train.lrr=1"),
        ["command line: train.lrr = 1", "unknown key", "did you mean 'lr'"],
        2,
    ),
    Fault(12, "override without a value", config(), (*PRETRAIN, "train.lr"), ["command line", "'train.lr'", "write key.path=value"], 2),
]

"""A MONAI bundle of a fine-tuned segmentation, which gives the label maps of `medcl3d predict`."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

from medcl3d.core.version import __version__
from medcl3d.exports import safetensors_files
from medcl3d.exports.source import Source
from medcl3d.io.atomic import write_json

PARTS = "medcl3d.exports.bundle_parts"
RUN = (
    "python -m monai.bundle run --config_file configs/inference.json --meta_file configs/metadata.json "
    "--bundle_root ."
)
README = """# Segmentation: {names}

Segments the NIfTI files of a folder, as `medcl3d predict` does. It needs `pip install 'medcl3d[export]'`. In
this folder:

    {run} --dataset_dir SCANS --output_dir LABELS

`--intensity ct` (or mri, none) is required if the network was trained on scans of several kinds. Each scan
is prepared as the training scans were (`models/model.json`: spacing, intensity), predicted in overlapping
windows, and resampled to its own grid. Research software, not validated for clinical use.

Licence of the weights: {licence}.
"""


def write_bundle(source: Source, out: Path) -> list[str]:
    """Write configs/, models/ and docs/ of a bundle."""
    for name in ("configs", "models", "docs"):
        (out / name).mkdir()
    safetensors_files.write(source, out / "models")
    names = {0: "background", **classes_of(source)}
    write_json(out / "configs" / "inference.json", inference_of(source))
    write_json(out / "configs" / "metadata.json", metadata_of(source, names))
    foreground = ", ".join(name for value, name in names.items() if value)
    text = README.format(names=foreground, run=RUN, licence=source.licence)
    (out / "docs" / "README.md").write_text(text, encoding="utf-8")
    return [f"run it there: {RUN} --dataset_dir SCANS --output_dir LABELS"]


def classes_of(source: Source) -> dict[int, str]:
    """Label value -> name of the segmented classes, without background."""
    labels = {int(value): name for value, name in source.sidecar["label_names"].items()}
    chosen = source.sidecar["task"]["segmentation"].get("classes")
    return {
        value: name for value, name in sorted(labels.items()) if value and (not chosen or value in chosen)
    }


def inference_of(source: Source) -> dict[str, Any]:
    """The configuration of `run`."""
    task = source.sidecar["task"]["segmentation"]
    return {
        "imports": ["$import pathlib", "$import torch", f"$import {PARTS} as parts"],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/scans'",
        "output_dir": "$@bundle_root + '/labels'",
        "intensity": None,
        "device": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
        "predictor": "$parts.load_run(pathlib.Path(@bundle_root, 'models'), @intensity)",
        "network": {"_target_": f"{PARTS}.Probabilities", "predictor": "@predictor"},
        "preprocessing": {"_target_": f"{PARTS}.Prepare", "predictor": "@predictor"},
        "dataset": {
            "_target_": "Dataset",
            "data": "$parts.scans(@dataset_dir)",
            "transform": "@preprocessing",
        },
        "inferer": {
            "_target_": "SlidingWindowInferer",
            "roi_size": list(source.patch_size),
            "sw_batch_size": task["windows"],
            "overlap": task["overlap"],
            "mode": "gaussian",
            "sw_device": "@device",
            "device": "cpu",
        },
        "postprocessing": {
            "_target_": f"{PARTS}.WriteLabels",
            "predictor": "@predictor",
            "folder": "@output_dir",
        },
        "run": ["$parts.segment(@dataset, @inferer, @network, @postprocessing, @device)"],
    }


def metadata_of(source: Source, names: dict[int, str]) -> dict[str, Any]:
    """What the network takes and returns, in the form of MONAI's bundles."""
    patch = list(source.patch_size)
    image = {"type": "image", "format": "magnitude", "modality": str(source.sidecar["intensity"]["kind"])}
    shape = {"spatial_shape": patch, "dtype": "float32", "is_patch_data": True}
    channels = {str(index): f"channel {index}" for index in range(source.in_channels)}
    classes = {str(index): name for index, name in enumerate(names.values())}
    return {
        "version": "1.0.0",
        "changelog": {"1.0.0": "exported by medcl3d"},
        "monai_version": version("monai"),
        "pytorch_version": version("torch"),
        "numpy_version": version("numpy"),
        "required_packages_version": {"medcl3d": __version__, "fire": ">=0.5"},
        "task": "segmentation",
        "description": f"segmentation of {', '.join(name for value, name in names.items() if value)}",
        "authors": "",
        "copyright": f"licence of the weights: {source.licence}",
        "intended_use": "research, not validated for clinical use",
        "label_values": {name: value for value, name in names.items()},
        "network_data_format": {
            "inputs": {
                "image": {**image, "num_channels": source.in_channels, **shape, "channel_def": channels}
            },
            "outputs": {
                "pred": {"type": "image", "format": "segmentation", "num_channels": len(names), **shape,
                         "value_range": [0, 1], "channel_def": classes}
            },
        },
    }  # fmt: skip

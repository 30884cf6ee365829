"""Train nnU-Net for one short epoch from an export, with nnU-Net's own code; it runs in nnU-Net's Python.

Arguments: the folder of the export, crops.npy ``[B, C, x, y, z]``, and a folder for data and results. Writes
outputs.npz: the maps and logits of nnU-Net's network after its loader, on the crops with reversed axes.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np

EXPORT, CROPS, WORK = map(Path, sys.argv[1:4])
DATASET, PLANS = "Dataset999_Tiny", "medcl3dPlans"
os.environ |= {f"nnUNet_{name}": str(WORK / name) for name in ("raw", "preprocessed", "results")}
os.environ |= {"nnUNet_compile": "f", "nnUNet_n_proc_DA": "0", "nnUNet_def_n_proc": "1"}


def write_dataset() -> None:
    """Three volumes of 40 x 32 x 36 voxels with two structures."""
    import SimpleITK as sitk

    folder = WORK / "raw" / DATASET
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for index in range(3):
        labels = np.zeros((36, 32, 40), np.uint8)
        labels[4:16, 6:20, 8:24], labels[20:30, 8:24, 10:30] = 1, 2
        image = rng.normal(100, 10, labels.shape) + 40 * labels
        for place, values in (
            ("imagesTr/case_{}_0000", image.astype(np.float32)),
            ("labelsTr/case_{}", labels),
        ):
            volume = sitk.GetImageFromArray(values)
            volume.SetSpacing((1.0, 1.5, 2.0))
            sitk.WriteImage(volume, folder / f"{place.format(index)}.nii.gz")
    described = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "a": 1, "b": 2}, "numTraining": 3,
                 "file_ending": ".nii.gz"}  # fmt: skip
    (folder / "dataset.json").write_text(json.dumps(described))


def prepare() -> None:
    """Fingerprint and preprocess with the plans of the export."""
    from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, preprocess

    extract_fingerprints([999], num_processes=1)
    folder = WORK / "preprocessed" / DATASET
    plans = json.loads((EXPORT / f"{PLANS}.json").read_text()) | {"dataset_name": DATASET}
    (folder / f"{PLANS}.json").write_text(json.dumps(plans))
    shutil.copy(WORK / "raw" / DATASET / "dataset.json", folder)
    preprocess([999], PLANS, ["3d_fullres"], [1])


def train() -> None:
    """Load the weights, compute the outputs of the crops, then train two iterations."""
    import torch
    from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    torch.set_num_threads(1)
    folder = WORK / "preprocessed" / DATASET
    plans, described = (json.loads((folder / name).read_text()) for name in (f"{PLANS}.json", "dataset.json"))
    plans["continue_training"] = False  # as nnUNetv2_train sets it
    trainer = nnUNetTrainer(plans, "3d_fullres", "all", described, torch.device("cpu"))
    trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = 1, 2, 1
    trainer.initialize()
    load_pretrained_weights(trainer.network, EXPORT / "checkpoint.pth")
    crops = torch.from_numpy(np.load(CROPS)).permute(0, 1, 4, 3, 2).contiguous()
    network = trainer.network.eval()
    with torch.no_grad():
        maps = network.encoder(crops)
    back = {f"map_{i}": one.permute(0, 1, 4, 3, 2).numpy() for i, one in enumerate(maps)}
    np.savez(WORK / "outputs.npz", **back)
    before = next(network.encoder.parameters()).clone()
    trainer.run_training()
    after = next(network.encoder.parameters())
    print(
        f"nnU-Net {type(network).__name__}: trained, largest change {float((after - before).abs().max()):.3g}"
    )
    assert (Path(trainer.output_folder) / "checkpoint_final.pth").is_file()


if __name__ == "__main__":
    write_dataset()
    prepare()
    train()

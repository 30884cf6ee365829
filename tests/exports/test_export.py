"""Exports: what is refused, what is withheld, and that each format computes what the run computes."""

from __future__ import annotations

import hashlib
import json
import os
import pydoc
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

import medcl3d
from medcl3d.cli import app
from medcl3d.core.errors import ConfigError, MachineError
from medcl3d.datasets.pseudonymise import KEY
from medcl3d.downstream.predict.predict import predict, segment
from medcl3d.downstream.predict.predictor import load_run
from medcl3d.downstream.transfer import load_weights
from medcl3d.exports.export import FORMATS, export
from medcl3d.exports.nnunet import intensities, unlike_normalisation
from medcl3d.exports.source import Source, file_content
from medcl3d.preprocessing.body_mask import find_body
from medcl3d.preprocessing.normalise import normalise
from tests.exports.conftest import FROZEN, RunMaker

SMALL_CROP = torch.randn(2, 1, 8, 8, 8, generator=torch.Generator().manual_seed(1))
PATIENTS = json.loads((FROZEN / "pretrain" / "encoder.json").read_text())["pretraining_patients"]


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def test_safetensors_of_a_pretraining_load_as_a_run_folder(tmp_path: Path) -> None:
    out = export(FROZEN / "pretrain", "safetensors", tmp_path / "out", licence="CC-BY-4.0")
    one, two = medcl3d.load_encoder(FROZEN / "pretrain"), medcl3d.load_encoder(out)
    for ours, theirs in zip(one(SMALL_CROP).maps, two(SMALL_CROP).maps, strict=True):
        assert torch.equal(ours, theirs)
    assert (one.spacing_mm, one.intensity, one.patch_size) == (two.spacing_mm, two.intensity, two.patch_size)
    assert two.sidecar["axes"] == "RAS" and two.sidecar["licence"] == "CC-BY-4.0"
    with pytest.raises(ConfigError, match=r"does not list the patients of pretraining.*use the run folder"):
        load_weights(two.network, out, "encoder", ["anyone"])


def test_safetensors_of_a_fine_tuning_predict_the_same(tmp_path: Path) -> None:
    out = export(FROZEN / "finetune", "safetensors", tmp_path / "out")
    found = [segment(load_run(run), FROZEN / "scan.nii.gz", keep=True) for run in (FROZEN / "finetune", out)]
    assert np.array_equal(found[0][1], found[1][1])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("run", "to"), [("pretrain", "safetensors"), ("finetune", "monai"), ("pretrain", "hub")]
)
def test_patients_paths_and_hashes_are_left_out(tmp_path: Path, run: str, to: str) -> None:
    out = export(FROZEN / run, to, tmp_path / "out")
    source = json.loads(next((FROZEN / run).glob("[em]*o*[rl].json")).read_text())
    secrets = [*PATIENTS, *source.get("training_patients", []), source["provenance"]["data"]]
    secrets += [word for line in source.get("pretraining_content", []) for word in line.split()]
    for name, content in files_of(out).items():
        for secret in secrets:
            assert secret.encode() not in content, (name, secret)


def test_provenance_is_hashed_under_the_key_of_the_run(tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(FROZEN / "pretrain", run)
    outs = [export(run, "safetensors", tmp_path / name, with_provenance=True) for name in "ab"]
    hashed = [json.loads((out / "encoder.json").read_text())["hashed"] for out in outs]
    assert hashed[0] == hashed[1] and len(hashed[0]["pretraining_patients"]) == len(PATIENTS)
    assert [len(line.split()) for line in hashed[0]["pretraining_content"]] == [3, 3, 3, 3]
    assert (run / KEY).stat().st_mode & 0o77 == 0 and not list(outs[0].rglob(KEY))
    (run / KEY).unlink()
    other = export(run, "safetensors", tmp_path / "c", with_provenance=True)
    assert not set(hashed[0]["pretraining_patients"]) & set(
        json.loads((other / "encoder.json").read_text())["hashed"]["pretraining_patients"]
    )
    assert not set(PATIENTS) & set(hashed[0]["pretraining_patients"])


def test_a_folder_with_other_files_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    export(FROZEN / "pretrain", "safetensors", out)
    before = files_of(out)
    export(FROZEN / "pretrain", "safetensors", out)  # the same again
    assert files_of(out) == before and not list(tmp_path.glob(".out*"))
    for run, to in (("finetune", "safetensors"), ("pretrain", "hub")):
        with pytest.raises(ConfigError, match=r"--out .*: has files that this export did not write"):
            export(FROZEN / run, to, out)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    with pytest.raises(ConfigError, match="choose an empty folder"):
        export(FROZEN / "pretrain", "safetensors", tmp_path / "mine")
    assert files_of(out) == before


def test_the_weights_after_a_step_are_exported(make_run: RunMaker, tmp_path: Path) -> None:
    run = make_run("unet3d")
    last = load_file(run / "encoder.safetensors")
    former = {name: one + 1 for name, one in last.items()}
    content = file_content(former)
    (run / "encoder_5.safetensors").write_bytes(content)
    sidecar = json.loads((run / "encoder.json").read_text())
    sidecar |= {"step": 5, "weights_sha256": hashlib.sha256(content).hexdigest()}
    (run / "encoder_5.json").write_text(json.dumps(sidecar))
    found = load_file(export(Path(f"{run}@5"), "safetensors", tmp_path / "out") / "encoder.safetensors")
    assert all(torch.equal(found[name], former[name]) for name in former)
    with pytest.raises(ConfigError, match="has no weights after step 6, it has steps 5"):
        export(Path(f"{run}@6"), "safetensors", tmp_path / "other")


def test_monai_has_no_stem_of_resenc(make_run: RunMaker, tmp_path: Path) -> None:
    run = make_run("unet3d", residual=True, resenc=True, blocks=1)
    with pytest.raises(ConfigError, match="cannot be exported to monai: DynUNet has no stem"):
        export(run, "monai", tmp_path / "out")


def test_unknown_patients_are_not_hashed(make_run: RunMaker, tmp_path: Path) -> None:
    """As of a fine-tuning that started from weights of another project."""
    run = make_run("unet3d", segments=True)
    sidecar = json.loads((run / "model.json").read_text()) | {"pretraining_patients": "unknown"}
    (run / "model.json").write_text(json.dumps(sidecar))
    out = export(run, "safetensors", tmp_path / "out", with_provenance=True)
    exported = json.loads((out / "model.json").read_text())
    assert set(exported["hashed"]) == {"training_patients"}
    assert exported["pretraining_patients"] == "withheld"


def test_a_failed_export_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("medcl3d.exports.safetensors_files.write_json", full)
    with pytest.raises(MachineError, match="cannot write: No space left"):
        export(FROZEN / "pretrain", "safetensors", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_what_does_not_fit_is_refused_from_the_command_line(tmp_path: Path) -> None:
    def refused(*arguments: object) -> str:
        done = CliRunner().invoke(app, ["export", *map(str, arguments), "--out", str(tmp_path / "out")])
        assert done.exit_code == 2 and not (tmp_path / "out").exists()
        return done.stderr

    run = FROZEN / "pretrain"
    assert "did you mean 'onnx'?; use one of safetensors, " in refused(run, "--to", "onxx")
    assert "unet3d strides its shortcuts by convolutions" in refused(run, "--to", "nnunet")
    assert "finished pretraining or fine-tuning" in refused(tmp_path, "--to", "hub")
    classifier = tmp_path / "classifier"
    shutil.copytree(FROZEN / "finetune", classifier)
    sidecar = json.loads((classifier / "model.json").read_text())
    (classifier / "model.json").write_text(
        json.dumps(sidecar | {"task": {"classification": {"target": "sex"}}})
    )
    for to in set(FORMATS) - {"safetensors", "onnx"}:
        assert "classification" in refused(classifier, "--to", to)


@pytest.mark.parametrize("run", ["pretrain", "finetune"])
def test_a_hub_folder_loads_with_the_client_of_the_hub(tmp_path: Path, run: str) -> None:
    pytest.importorskip("huggingface_hub")
    from medcl3d.exports.hub_model import HubModel

    out = export(FROZEN / run, "hub", tmp_path / "out", licence="CC-BY-4.0")
    model = HubModel.from_pretrained(out).eval()
    source = Source.of(FROZEN / run)
    with torch.no_grad():
        found = model(SMALL_CROP)
    expected = source.outputs(SMALL_CROP)
    assert torch.equal(found if run == "finetune" else found.pooled, next(iter(expected.values())))
    card = (out / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: medcl3d\nlicense: cc-by-4.0\n")
    assert "dice: " in card if run == "finetune" else "overlapping_crops" in card
    assert "not validated for clinical use" in card


@pytest.mark.parametrize("name", ["resnet3d", "vit3d", "swin3d", "unet3d"])
def test_an_encoder_under_the_names_of_monai(make_run: RunMaker, tmp_path: Path, name: str) -> None:
    run = make_run(name)
    out = export(run, "monai", tmp_path / "out")
    network = json.loads((out / "network.json").read_text())
    target = network.pop("_target_")
    theirs = pydoc.locate(target)(**network).eval()  # type: ignore[operator]
    missing, unexpected = theirs.load_state_dict(load_file(out / "encoder.safetensors"), strict=False)
    assert not unexpected
    source = Source.of(run)
    crops = source.crops(1)
    with torch.no_grad():
        features = source.model(crops)
        if name == "resnet3d":
            assert not missing
            expected = (theirs(crops),)
            found = (features.pooled,)
        elif name == "vit3d":
            assert not missing
            expected = (theirs(crops)[0].transpose(1, 2).unflatten(2, features.maps[0].shape[2:]),)
            found = features.maps
        elif name == "swin3d":
            assert not [key for key in missing if key.startswith("swinViT.")]
            expected, found = theirs.swinViT(crops), features.maps
        else:
            assert not [
                key for key in missing if key.startswith(("input_block.", "downsamples.", "bottleneck."))
            ]
            expected, found = [theirs.input_block(crops)], features.maps
            expected += [theirs.downsamples[0](expected[0])]
            expected += [theirs.bottleneck(expected[1])]
    largest = max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True))
    print(f"\n{name}: {target} differs by at most {largest:.2g}")
    assert largest < 1e-5


def network_of(architecture: dict[str, Any]) -> Any:
    """The network of a plans file, from nnU-Net's library, in evaluation mode with outputs of all scales."""
    pytest.importorskip("dynamic_network_architectures")
    fields = dict(architecture["arch_kwargs"])
    for name in architecture["_kw_requires_import"]:
        fields[name] = fields[name] and pydoc.locate(fields[name])
    constructor: Any = pydoc.locate(architecture["network_class_name"])
    network = constructor(input_channels=1, num_classes=3, deep_supervision=True, **fields)
    return network.eval()


@pytest.mark.parametrize("value_range", [None, (0.0, 1.0), (-2.0, 5.0)])
def test_nnunet_maps_hounsfield_units_as_the_run(value_range: tuple[float, float] | None) -> None:
    hu = np.linspace(-1500, 900, 25, dtype=np.float32).reshape(1, 5, 5, 1)
    window = (-1000.0, 400.0)
    options = {"percentiles": (0.5, 99.5), "window_hu": window, "value_range": value_range}
    ours, _ = normalise(hu, "ct", find_body(hu, "none"), **options)  # type: ignore[arg-type]
    of_plan = intensities({"kind": "ct", "window_hu": list(window), "value_range": value_range})
    theirs = np.clip(hu, of_plan["percentile_00_5"], of_plan["percentile_99_5"])
    np.testing.assert_allclose((theirs - of_plan["mean"]) / of_plan["std"], ours, atol=1e-6)


def test_other_intensities_than_those_of_the_run_are_reported() -> None:
    assert not unlike_normalisation({"kind": "ct", "value_range": [0.0, 1.0]})
    assert not unlike_normalisation({"kind": "mri"})
    assert "scaled MR to [0.0, 1.0]" in unlike_normalisation({"kind": "mri", "value_range": [0.0, 1.0]})[0]
    assert "several kinds (ct+mri)" in unlike_normalisation({"kind": "ct+mri"})[0]


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize(("segments", "decoder"), [(False, False), (False, True), (True, True)])
def test_nnunet_computes_the_maps_of_a_crop_with_reversed_axes(
    make_run: RunMaker, tmp_path: Path, segments: bool, decoder: bool, residual: bool
) -> None:
    fields = {"blocks": [1, 2, 1], "residual": residual, "resenc": residual}
    run = make_run("unet3d", segments=segments, decoder=decoder, **fields)
    out = export(run, "nnunet", tmp_path / "out")
    weights = torch.load(out / "checkpoint.pth", weights_only=True)["network_weights"]
    plan = json.loads((out / "medcl3dPlans.json").read_text())["configurations"]["3d_fullres"]
    assert plan["spacing"] == [2.0, 1.5, 1.0]
    kwargs = plan["architecture"]["arch_kwargs"]
    assert kwargs["strides"] == [[1, 1, 1], [2, 2, 1], [2, 2, 2]]
    assert kwargs["n_blocks_per_stage" if residual else "n_conv_per_stage"] == (
        [1, 2, 1] if residual else [2, 4, 2]
    )
    theirs = network_of(plan["architecture"])
    missing, unexpected = theirs.load_state_dict(weights, strict=False)
    assert not unexpected and not [key for key in missing if segments or ".seg_layers." not in key]
    source = Source.of(run)
    crops = source.crops()[..., :16]
    maps = theirs.encoder(crops.permute(0, 1, 4, 3, 2))
    with torch.no_grad():
        features = source.network(crops)
        for ours, other in zip(features.maps, maps, strict=True):
            torch.testing.assert_close(ours, other.permute(0, 1, 4, 3, 2), rtol=1e-4, atol=1e-5)
        found: list[torch.Tensor] = []
        theirs.decoder.stages[-1].register_forward_hook(lambda *given: found.append(given[2]))
        logits = theirs.decoder(maps)[0]
        if decoder:
            back = found[0].permute(0, 1, 4, 3, 2)
            torch.testing.assert_close(features.decoded, back, rtol=1e-4, atol=1e-5)
        if segments:
            back = logits.permute(0, 1, 4, 3, 2)
            torch.testing.assert_close(source.model(crops), back, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.timeout(1200)  # a Swin transformer has some thousand operations
@pytest.mark.parametrize("to", ["torch_export", "onnx"])
@pytest.mark.parametrize("name", ["unet3d", "resnet3d", "vit3d", "swin3d"])
def test_a_program_computes_the_outputs_for_any_number_of_crops(
    make_run: RunMaker, tmp_path: Path, name: str, to: str
) -> None:
    more = {"num_registers": 2} if name == "vit3d" else {}
    lines: list[str] = []
    run = make_run(name, decoder=True, **more)
    out = export(run, to, tmp_path / "out", say=lines.append)
    print(f"\n{name}, {to}: {lines[0]}")
    source = Source.of(run)
    for number in (1, 5):
        crops = source.crops(number)
        expected = source.outputs(crops)
        if to == "onnx":
            onnxruntime = pytest.importorskip("onnxruntime")
            session = onnxruntime.InferenceSession(out / "model.onnx")
            found = dict(zip(expected, session.run(list(expected), {"crops": crops.numpy()}), strict=True))
        else:
            program = torch.export.load(out / "model.pt2").module()
            found = {key: one.detach().numpy() for key, one in program(crops).items()}
        for key, one in expected.items():
            np.testing.assert_allclose(found[key], one.numpy(), rtol=0, atol=1e-4, err_msg=key)


@pytest.mark.slow
def test_the_outputs_of_a_segmentation_are_logits(make_run: RunMaker, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    run = make_run("unet3d", segments=True)
    out = export(run, "onnx", tmp_path / "out")
    source = Source.of(run)
    crops = source.crops(1)
    (found,) = onnxruntime.InferenceSession(out / "model.onnx").run(["logits"], {"crops": crops.numpy()})
    np.testing.assert_allclose(found, source.outputs(crops)["logits"].numpy(), rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("flips", [[False, False, False], [True, False, True]])
def test_a_bundle_gives_the_label_maps_of_predict(
    make_run: RunMaker, tmp_path: Path, flips: list[bool]
) -> None:
    """Scans smaller than a patch in one axis, on a grid that is not RAS+."""
    pytest.importorskip("fire")
    run = make_run("unet3d", segments=True)
    sidecar = json.loads((run / "model.json").read_text())
    sidecar["task"]["segmentation"]["test_time_flips"] = flips
    (run / "model.json").write_text(json.dumps(sidecar))
    scans = tmp_path / "scans"
    scans.mkdir()
    rng, affine = np.random.default_rng(0), np.diag([-1.0, 1.0, -2.0, 1.0])
    for name, shape in (("a.nii.gz", (40, 50, 20)), ("b.nii", (33, 34, 45))):
        nibabel.save(nibabel.Nifti1Image(rng.normal(size=shape).astype(np.float32), affine), scans / name)
    out = export(run, "monai", tmp_path / "bundle")
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", "configs/inference.json",
               "--meta_file", "configs/metadata.json", "--bundle_root", ".", "--dataset_dir", str(scans),
               "--output_dir", str(tmp_path / "labels")]  # fmt: skip
    subprocess.run(command, cwd=out, check=True, capture_output=True)
    predicted = predict(run, scans, tmp_path / "predicted")
    assert len(predicted) == 2
    for path in predicted:
        ours, theirs = (
            nibabel.load(path),
            nibabel.load(tmp_path / "labels" / f"{path.name.split('.')[0]}.nii.gz"),
        )
        np.testing.assert_array_equal(theirs.affine, ours.affine)
        np.testing.assert_array_equal(np.asarray(theirs.dataobj), np.asarray(ours.dataobj))
        assert len(np.unique(np.asarray(ours.dataobj))) > 1


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("fields", "network"),
    [({}, "PlainConvUNet"), ({"residual": True, "resenc": True}, "ResidualEncoderUNet")],
    ids=["plain", "resenc"],
)
def test_nnunet_trains_from_an_export(
    make_run: RunMaker, tmp_path: Path, fields: dict[str, bool], network: str
) -> None:
    """Needs nnU-Net: NNUNET_PYTHON=/path/to/python of an environment with nnunetv2."""
    python = os.environ.get("NNUNET_PYTHON")
    if python is None:
        pytest.skip("NNUNET_PYTHON is not set")
    run = make_run("unet3d", blocks=[1, 2, 1], **fields)
    out = export(run, "nnunet", tmp_path / "out")
    source = Source.of(run)
    crops = source.crops()
    np.save(tmp_path / "crops.npy", crops.numpy())
    (tmp_path / "work").mkdir()
    script = Path(__file__).with_name("nnunet_oracle.py")
    arguments = [python, script, out, tmp_path / "crops.npy", tmp_path / "work"]
    done = subprocess.run(arguments, check=True, capture_output=True, text=True)
    assert f"nnU-Net {network}: trained, largest change " in done.stdout
    assert float(done.stdout.rsplit(maxsplit=1)[-1]) > 0
    found, ours = np.load(tmp_path / "work" / "outputs.npz"), source.outputs(crops)
    largest = max(float(np.abs(found[name] - ours[name].numpy()).max()) for name in found.files)
    print(f"\nnnU-Net's network differs by at most {largest:.2g}")
    assert len(found.files) == 3 and largest < 1e-4

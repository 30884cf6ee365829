from __future__ import annotations

import gzip
import os
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medcl3d.core.errors import DataError
from medcl3d.datasets.sources.csv import csv
from medcl3d.datasets.volumes import split_volumes
from medcl3d.io.nifti import read_header
from medcl3d.preprocessing.options import PrepareOptions
from medcl3d.preprocessing.prepare import prepare
from medcl3d.preprocessing.read_scan import SkippedScan, read_image, read_label

RAMP = np.arange(6 * 5 * 4, dtype=np.int16).reshape(6, 5, 4)


def verify(path: Path) -> DataError | None:
    try:
        read_image(path)
    except DataError as error:
        return error
    return None


def set_field(name: str, value: object) -> Callable:
    def change(header: object) -> None:
        header[name] = value  # type: ignore[index]

    return change


def singular(header: object) -> None:
    header["srow_y"] = header["srow_x"]  # type: ignore[index]


def colours(header: object) -> None:
    header["datatype"], header["bitpix"] = 128, 24  # type: ignore[index]


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (set_field("dim", [3, -6, 5, 4, 1, 1, 1, 1]), "every axis needs at least one"),
        (set_field("dim", [9, 6, 5, 4, 1, 1, 1, 1]), "9 axes"),
        (set_field("dim", [2, 30, 4, 1, 1, 1, 1, 1]), "2 axes"),
        (set_field("dim", [3, 32767, 32767, 32767, 1, 1, 1, 1]), "cannot hold them"),
        (set_field("dim", [3, 60, 5, 4, 1, 1, 1, 1]), "truncated"),
        (set_field("datatype", 77), "data type 77 does not exist"),
        (set_field("datatype", 32), "complex"),
        (set_field("datatype", 2), "16 bits per voxel"),
        (colours, "RGB"),
        (set_field("srow_x", [np.nan, 0, 0, 0]), "NaN"),
        (singular, "singular"),
        (set_field("scl_slope", np.nan), "scl_slope is nan"),
        (set_field("vox_offset", 100), "vox_offset"),
        (set_field("magic", b"ni1"), "half of a .hdr/.img pair"),
        (set_field("magic", b"xyz"), "ANALYZE"),
    ],
)
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_a_damaged_header_is_refused_with_its_fault(write_nifti, change, fault, name) -> None:
    path = write_nifti(name, RAMP, change=change)
    error = verify(path)
    assert error is not None and fault in str(error) and str(path) in str(error)


def test_a_valid_file_is_read_with_its_scaling_and_geometry(write_nifti) -> None:
    affine = np.array([[0, 0, 2.0, 5], [-1, 0, 0, 6], [0, 1.5, 0, 7], [0, 0, 0, 1]])

    def scaled(header: object) -> None:
        header["scl_slope"], header["scl_inter"] = 0.5, -3  # type: ignore[index]

    volume = read_image(write_nifti("a.nii.gz", RAMP, affine, scaled))
    np.testing.assert_allclose(volume.voxels[0], RAMP * 0.5 - 3)
    np.testing.assert_allclose(volume.affine, affine)
    np.testing.assert_allclose(volume.spacing_mm, [1, 1.5, 2])


def test_every_truncation_of_a_compressed_file_is_refused(write_nifti, tmp_path) -> None:
    content = write_nifti("a.nii.gz", RAMP).read_bytes()
    for length in (1, 10, 60, len(content) // 2, len(content) - 8, len(content) - 1):
        cut = tmp_path / "cut.nii.gz"
        cut.write_bytes(content[:length])
        assert "truncated" in str(verify(cut)) or "gzip" in str(verify(cut)), length


def test_the_error_of_a_truncated_file_has_its_sizes(write_nifti, tmp_path) -> None:
    content = write_nifti("a.nii", RAMP).read_bytes()
    cut = tmp_path / "cut.nii"
    cut.write_bytes(content[:-100])
    assert f"requires {len(content)} bytes" in str(
        verify(cut)
    ) and f"a file of {len(content) - 100} bytes" in str(verify(cut))


def test_a_flipped_bit_in_a_compressed_file_never_passes(write_nifti, tmp_path) -> None:
    content = write_nifti(
        "a.nii.gz", np.random.default_rng(0).integers(0, 1000, (9, 9, 9)).astype(np.int16)
    ).read_bytes()
    # The first ten bytes are the time and the system, which do not affect the content.
    for position in range(10, len(content), 37):
        damaged = bytearray(content)
        damaged[position] ^= 16
        path = tmp_path / "damaged.nii.gz"
        path.write_bytes(damaged)
        assert verify(path) is not None, position


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.tuples(st.integers(0, 351), st.integers(0, 255)), min_size=1, max_size=6))
def test_no_header_causes_a_crash(tmp_path, changes) -> None:
    content = bytearray(nibabel.Nifti1Image(RAMP, np.eye(4)).to_bytes())
    for position, value in changes:
        content[position] = value
    path = tmp_path / "fuzzed.nii"
    path.write_bytes(content)
    assert verify(path) is None or str(path) in str(verify(path))


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("a.nii.gz", b"", "empty"),
        ("a.nii.gz", b"<!DOCTYPE html><html>404</html>", "HTML"),
        ("a.nii.gz", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        ("a.nii.gz", b"NRRD0004\n" + b"\0" * 600, "NRRD"),
        ("a.nii", b"\0" * 128 + b"DICM" + b"\0" * 600, "DICOM"),
        ("a.nii", gzip.compress(b"x" * 600, mtime=0), "rename it to .nii.gz"),
        ("a.nii.gz", gzip.compress(b"x" * 600, mtime=0), "not NIfTI"),
        ("a.npy", b"\x93NUMPY", "NumPy"),
        ("a.npz", b"PK\x03\x04", "prepare its folder with the source medmnist"),
        ("a.NII.GZ", gzip.compress(b"x" * 600, mtime=0), "rename it with a lower-case suffix"),
        ("a.img", b"\0" * 600, "convert it to NIfTI"),
    ],
)
def test_other_formats_are_named_in_the_error(tmp_path, name, content, fault) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert fault in str(verify(path))


def test_pipes_folders_and_loops_of_links_are_refused_at_once(tmp_path) -> None:
    pipe, folder, loop = (tmp_path / f"{n}.nii.gz" for n in ("pipe", "folder", "loop"))
    os.mkfifo(pipe)
    folder.mkdir()
    loop.symlink_to(loop)
    assert "pipe" in str(verify(pipe)) and "folder" in str(verify(folder)) and "links" in str(verify(loop))
    assert "no such file" in str(verify(tmp_path / "absent.nii.gz"))


def test_nan_follows_the_policy(write_nifti) -> None:
    voxels = RAMP.astype(np.float32)
    voxels[0, 0, 0], voxels[1, 1, 1] = np.nan, np.inf
    path = write_nifti("a.nii.gz", voxels)
    assert "2 of 120 voxels" in str(verify(path))
    zeroed = read_image(path, nonfinite="zero")
    assert zeroed.num_nonfinite == 2 and zeroed.voxels[0, 1, 1, 1] == 0 and "2 NaN" in zeroed.warnings[-1]
    with pytest.raises(SkippedScan):
        read_image(path, nonfinite="skip")


def test_constant_and_overflowing_volumes_are_refused(write_nifti) -> None:
    assert "constant" in str(verify(write_nifti("a.nii.gz", np.full((4, 4, 4), 7, np.int16))))
    huge = RAMP.astype(np.float64)
    huge[0, 0, 0] = 1e300
    assert "float32" in str(verify(write_nifti("b.nii.gz", huge)))
    assert "too far from 0 for float32" in str(verify(write_nifti("c.nii.gz", RAMP.astype(np.int64) + 2**40)))
    assert "too far from 0 for float32" in str(verify(write_nifti("d.nii.gz", RAMP.astype(np.float64) + 1e9)))
    assert verify(write_nifti("e.nii.gz", RAMP.astype(np.int32) + 2**22)) is None
    assert verify(write_nifti("f.nii.gz", (RAMP % 2).astype(np.int64) + 2**22)) is None


def test_a_fourth_axis_needs_the_option_channels(write_nifti) -> None:
    four = np.stack([RAMP, RAMP + 1], axis=-1)
    path = write_nifti("a.nii.gz", four)
    assert "channels to all" in str(verify(path))
    np.testing.assert_array_equal(read_image(path, channels="all").voxels, np.moveaxis(four, -1, 0))
    np.testing.assert_array_equal(read_image(path, channels="first").voxels, RAMP[None])
    # A trailing axis of 1 is not a channel axis.
    assert read_image(write_nifti("b.nii.gz", RAMP[..., None])).voxels.shape == (1, 6, 5, 4)


def test_implausible_geometry_gives_a_warning(write_nifti) -> None:
    sheared = np.eye(4)
    sheared[0, 1] = 0.3
    assert "not orthogonal" in " ".join(read_header(write_nifti("a.nii", RAMP, sheared)).warnings)
    assert "a spacing to use: 2, 2, 6" in " ".join(
        read_header(write_nifti("b.nii", RAMP, np.diag([1, 1, 6.0, 1]))).warnings
    )

    def differ(header: object) -> None:
        header["qform_code"], header["sform_code"] = 1, 1  # type: ignore[index]
        header["pixdim"][1:4] = 2  # type: ignore[index]

    assert "qform and sform differ" in " ".join(
        read_header(write_nifti("c.nii", RAMP, change=differ)).warnings
    )
    assert "a single plane, 6x5x1 voxels" in " ".join(
        read_header(write_nifti("d.nii", RAMP[..., :1])).warnings
    )


@pytest.mark.parametrize(
    ("affine", "header", "warnings"),
    [
        (np.diag([1, 1, 2.0, 1]), {}, []),
        (np.eye(4), {}, ["the affine is the identity"]),
        (np.diag([-1.0, -1, 1, 1]), {}, ["the affine is the identity"]),
        (np.diag([1e-3, 1e-3, 2e-3, 1]), {}, ["implausible voxels of 0.001, 0.001, 0.002 mm"]),
        # The qform is in metres as well as the sform.
        (np.diag([1e-3, 1e-3, 2e-3, 1]), {"xyzt_units": 1}, ["in metres"]),
        (np.diag([1, 1, 2.0, 1]), {"qoffset_y": 7}, ["corners differ by up to 7 mm"]),
        (
            np.diag([1, 1, 2.0, 1]),
            {"qform_code": 0, "pixdim": [1, 1, 1, 1, 0, 0, 0, 0]},
            ["pixdim has voxels of 1, 1, 1 mm, the sform of"],
        ),
        (
            np.eye(4),
            {"qform_code": 0, "sform_code": 0},
            ["the orientation is a guess, and so is the voxel size of 1 mm"],
        ),
        (np.diag([1, 1, 2.0, 1]), {"qform_code": 0, "sform_code": 0}, ["the orientation is a guess"]),
    ],
)
def test_a_header_gives_exactly_the_expected_warnings(write_nifti, affine, header, warnings) -> None:
    def change(raw: object) -> None:
        raw["qform_code"] = 1  # type: ignore[index]
        raw["pixdim"][1:4] = np.abs(np.diag(affine)[:3])  # type: ignore[index]
        raw["pixdim"][0] = 1  # type: ignore[index]
        if affine[0, 0] < 0:
            raw["quatern_d"] = 1  # type: ignore[index]  # half a turn about z
        for name, value in header.items():
            raw[name] = value  # type: ignore[index]

    found = read_header(write_nifti("a.nii", RAMP, affine, change)).warnings
    assert len(found) == len(warnings) and all(
        text in one for text, one in zip(warnings, found, strict=True)
    ), found


def test_a_label_must_belong_to_its_image(write_nifti) -> None:
    image = read_image(write_nifti("image.nii.gz", RAMP))
    good = (RAMP > 50).astype(np.uint8)
    shifted = np.eye(4)
    shifted[0, 3] = 3.0
    for name, array, affine, fault in (
        ("shape", good[:-1], None, "5x5x4 voxels cannot belong to an image of 6x5x4"),
        ("place", good, shifted, "3 mm from its image"),
        ("fraction", good * 0.5, None, "whole numbers"),
        ("negative", -good.astype(np.int16), None, "-1 to 0"),
        ("classes", good * 9, None, "classes [9] are not declared"),
    ):
        with pytest.raises(DataError) as caught:
            read_label(write_nifti(f"{name}.nii.gz", array, affine), image, (0, 1))
        assert fault in str(caught.value)
    with pytest.raises(DataError, match=r"found 1\.00100005; was it resampled"):
        read_label(write_nifti("near.nii.gz", good * np.float32(1.00100005)), image)
    noisy = read_label(write_nifti("noisy.nii.gz", good * np.float32(1 + 1e-6)), image, (0, 1))
    np.testing.assert_array_equal(noisy.voxels[0], good)
    assert noisy.warnings == ("label values up to 1e-06 from whole numbers were rounded",), (
        "the image has the warning of the affine"
    )
    nearly = np.eye(4)
    nearly[0, 3] = 0.01
    label = read_label(write_nifti("good.nii.gz", good, nearly), image, (0, 1))
    np.testing.assert_array_equal(label.voxels[0], good)
    np.testing.assert_array_equal(label.affine, image.affine)


def test_a_label_is_turned_to_the_axes_of_its_image(write_nifti) -> None:
    """Converters of DICOM write the rows of a slice in other directions."""
    image = read_image(write_nifti("image.nii.gz", RAMP, np.diag([-1.0, -2.0, 3.0, 1.0])))
    good = (RAMP > 50).astype(np.uint8)
    flipped = np.diag([-1.0, 2.0, 3.0, 1.0])
    flipped[1, 3] = -2.0 * 4
    label = read_label(write_nifti("flip.nii.gz", good[:, ::-1], flipped), image)
    np.testing.assert_array_equal(label.voxels[0], good)
    swapped = np.array([[0, -1.0, 0, 0], [-2.0, 0, 0, 0], [0, 0, 3.0, 0], [0, 0, 0, 1]])
    label = read_label(write_nifti("swap.nii.gz", good.transpose(1, 0, 2), swapped), image)
    np.testing.assert_array_equal(label.voxels[0], good)
    flipped[1, 3] = 0
    with pytest.raises(DataError, match="8 mm from its image"):
        read_label(write_nifti("else.nii.gz", good[:, ::-1], flipped), image)


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("empty_0_bytes.nii.gz", "the file is empty"),
        ("git_lfs_pointer.nii.gz", "Git-LFS pointer"),
        ("rgb_dtype.nii.gz", "RGB"),
        ("truncated_half_of_hippocampus_001.nii.gz", "truncated: the header requires 62827 bytes"),
    ],
)
def test_real_bad_files_are_refused_with_their_fault(real, name, fault) -> None:
    assert fault in str(verify(real / "bad_input" / name))


def test_a_real_label_of_another_organ_is_refused(real) -> None:
    image = read_image(real / "bad_input" / "image_without_label_hippocampus_118.nii.gz")
    with pytest.raises(DataError, match="512x512x94 voxels cannot belong to an image of 37x52x33"):
        read_label(real / "bad_input" / "label_without_image_hippocampus_281.nii.gz", image)


@pytest.mark.parametrize(
    "folder",
    ["hippocampus/imagesTr", "ixi40", "sarcoma/images", "sunnybrook/images", "ms_longitudinal", "ct/images"],
)
def test_real_valid_files_pass(real, folder) -> None:
    files = sorted(p for p in (real / folder).rglob("*.nii.gz") if "derivatives" not in p.parts)[::5]
    assert files and not [error for path in files if (error := verify(path))]
    assert all(isinstance(p, Path) for p in files)


@pytest.mark.parametrize("channels", ["error", "all"])
@pytest.mark.parametrize("shape", [(4, 10, 11, 12), (1, 10, 11, 12), (3, 4, 4, 4)])
def test_channels_on_the_first_axis_are_not_taken_for_planes(write_nifti, shape, channels) -> None:
    path = write_nifti("a.nii.gz", np.arange(np.prod(shape), dtype=np.int16).reshape(shape))
    with pytest.raises(
        DataError,
        match=rf"the first axis looks like {shape[0]} channels.*write the file with its first axis last",
    ) as caught:
        read_image(path, channels=channels)
    assert "set channels to all" not in str(caught.value)
    assert f"if that axis holds {shape[0]} planes, set channels to split or first" in str(caught.value)


def test_an_option_declares_few_planes_on_the_first_axis(write_nifti, tmp_path) -> None:
    """5 sagittal planes at 20 times look like 5 channels first; the option decides, with a warning."""
    voxels = np.random.default_rng(0).integers(0, 999, (5, 16, 17, 20)).astype(np.int16)
    path = write_nifti("a.nii.gz", voxels)
    warning = ": the first axis was taken for 5 planes"
    first, fourth, third_time = (
        read_image(path, channels=channels, volume=volume)
        for channels, volume in (("first", None), ("fourth", None), ("split", 3))
    )
    np.testing.assert_array_equal(first.voxels, voxels[None, ..., 0])
    np.testing.assert_array_equal(fourth.voxels, np.moveaxis(voxels, -1, 0))
    np.testing.assert_array_equal(third_time.voxels, voxels[None, ..., 3])
    assert all(any(warning in one for one in image.warnings) for image in (first, fourth, third_time))
    (tmp_path / "manifest.csv").write_text("path,patient\na.nii.gz,p\n")
    assert len(split_volumes(csv(tmp_path))) == 20
    assert (
        prepare("csv", tmp_path, tmp_path / "o", options=PrepareOptions(channels="split", workers=1)).num_ok
        == 20
    )


@pytest.mark.parametrize("shape", [(10, 11, 12, 4), (9, 10, 11, 12), (4, 4, 12, 12)])
def test_a_fourth_axis_of_channels_or_times_is_accepted(write_nifti, shape) -> None:
    path = write_nifti("a.nii.gz", np.arange(np.prod(shape), dtype=np.int16).reshape(shape))
    assert read_image(path, channels="all").voxels.shape == (shape[3], *shape[:3])
    with pytest.raises(DataError, match="set channels to all"):
        read_image(path)

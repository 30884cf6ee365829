from __future__ import annotations

from medcl3d.datasets.scan_ids import MADE_BYTES, MAX_BYTES, default_ids, fault_of, file_stem
from medcl3d.io.array_file import SUFFIXES
from medcl3d.store.stored_scan import stored_names


def test_a_path_becomes_an_id() -> None:
    assert default_ids(["./a/b/scan.nii.gz", "c.NII"]) == ["a_b_scan", "c"]


def test_ids_of_files_are_unique() -> None:
    paths = ["a.nii", "a.nii.gz", "a/b_c.nii.gz", "a_b/c.nii.gz", "d.nii"]
    made = default_ids(paths)
    assert (
        len(set(made)) == 5 and made[4] == "d" and made[0].startswith("a-") and made[2].startswith("a_b_c-")
    )
    assert default_ids(paths[::-1]) == made[::-1], "an id depends only on the paths"
    assert default_ids(["x/1.nii", "y/1.nii", "y/2.nii"], ["1", "1", "2"]) == ["x_1", "y_1", "2"]


def test_ids_of_long_paths_and_other_alphabets_can_name_files() -> None:
    paths = ["/".join(["a_long_name_of_a_folder"] * 12) + f"/scan_{i}.nii.gz" for i in range(2)] + [
        "患" * 80 + "/末.nii.gz"
    ]
    made = default_ids(paths)
    assert len(set(made)) == 3 and all(len(file_stem(one)) <= MADE_BYTES for one in made)
    assert made[0].endswith("/scan_0".replace("/", "_")) and made[2].endswith("末")


def test_a_too_long_id_is_refused_with_its_bytes() -> None:
    assert (
        fault_of("x" * MAX_BYTES) == ""
        and "takes 540 bytes" in fault_of("患" * 60)
        and "cannot be printed" in fault_of("a\nb")
    )
    longest = max(len(name) for store in SUFFIXES for name in stored_names("x" * MAX_BYTES, store))
    assert longest < 255 and stored_names("ü b", "npy")[0] == f"{file_stem('ü b')}.npy"


def test_an_id_is_not_mistaken_for_the_label_map_of_another() -> None:
    assert not set(stored_names("a")) & set(stored_names("a.label")) and file_stem("a.labels") == "a.labels"

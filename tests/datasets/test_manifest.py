from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from medcl3d.core.errors import DataError
from medcl3d.datasets.manifest import Manifest
from medcl3d.datasets.sources import SOURCES
from medcl3d.io.nifti import read_header
from medcl3d.io.table_file import read_table

ROWS = "scan,patient,path,site,age\n001,007,a.nii.gz,NA,40\n010,7,b.nii.gz,1e3,n/a\n"


def write(tmp_path: Path, text: str | bytes) -> Manifest:
    (tmp_path / "manifest.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    return SOURCES.get("csv")(tmp_path)


@pytest.mark.parametrize(
    "text",
    [ROWS, "\ufeff" + ROWS, ROWS.replace(",", ";"), ROWS.replace(",", "\t"), ROWS.replace("\n", "\r\n")],
)
def test_ids_stay_text_in_tables_of_any_program(tmp_path, text) -> None:
    table = write(tmp_path, text).table
    assert table["scan"].tolist() == ["001", "010"]
    assert table["patient"].tolist() == ["007", "7"]
    assert table["site"].tolist() == ["NA", "1e3"]
    assert table["frame"].tolist() == ["001", "010"]  # by default each scan is its own frame
    assert table["session"].tolist() == ["1", "1"]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "the table is empty"),
        ("scan,patient,path\n", "lists no scan"),
        ("scan,patient\na,p\n", "manifest.csv:1: the column path is missing"),
        ("scan,patient,path\na,,a.nii.gz\n", "manifest.csv:2: patient is empty"),
        ("scan,patient,path\na,p,a.nii.gz\na,p,b.nii.gz\n", "manifest.csv:2: scan = 'a': also"),
        ("scan,patient,path\na,p,a.nii.gz\nb,p,./a.nii.gz\n", "manifest.csv:2: path = 'a.nii.gz': also"),
        ("scan,scan,path\na,p,a.nii.gz\n", "manifest.csv:1: columns ['scan'] occur twice; keep one"),
        ("scan,patient,path,\na,p,a.nii.gz,x\n", "manifest.csv:1: column 4 has no name"),
        ("scan,patient,path,age\n\n\na,p,a.nii.gz,4\n\nb,q,b.nii.gz,old\n", "manifest.csv:6: age = 'old'"),
        (
            'scan,patient,path,note,age\na,p,a.nii.gz,"two\nlines",4\nb,q,b.nii.gz,x,old\n',
            "manifest.csv:4: age = 'old'",
        ),
        ("scan,patient,path,Age\na,p,a.nii.gz,430\n", "manifest.csv:2: Age = '430'"),
        (
            "scan,patient,path\n" + "患" * 60 + ",p,a.nii.gz\n",
            "takes 540 bytes in a file name, at most 200 are allowed",
        ),
        ("scan,patient,path\na,p," + "x" * 140_000 + "\n", "manifest.csv:2: field larger than field limit"),
        ("scan,patient,path\na,p,a.nii.gz\n".encode("utf-16-le"), "manifest.csv:1: a zero byte"),
        ("path,subject_id\na.nii.gz,p\n", "manifest.csv:1: column 'subject_id': may be the patient id"),
        ("scan,patient,path\na,p\n", "manifest.csv:2: 2 cells under 3"),
        ("scan,patient,path,split\na,p,a.nii.gz,val\n", "manifest.csv:2: split = 'val': is not one of train"),
        ("scan,patient,path,age\na,p,a.nii.gz,430\n", "manifest.csv:2: age = '430': a number of years"),
        (
            "scan,patient,path,session_days\na,p,a.nii.gz,soon\n",
            "manifest.csv:2: session_days = 'soon': a number of days",
        ),
        ("scan,patient,path\na,Müller,a.nii.gz\n".encode("latin-1"), "manifest.csv:2: the text is not UTF-8"),
    ],
)
def test_an_ambiguous_table_is_refused_with_its_line(tmp_path, text, fault) -> None:
    with pytest.raises(DataError) as caught:
        write(tmp_path, text)
    assert fault in str(caught.value)


def test_a_table_of_paths_is_read_with_a_warning(tmp_path) -> None:
    manifest = write(tmp_path, "path\n./one/t1.nii.gz\ntwo/t1.nii.gz\n")
    assert manifest.table["scan"].tolist() == ["one_t1", "two_t1"] == manifest.table["patient"].tolist()
    assert "no patient ids" in manifest.notes[0]
    assert not write(tmp_path, "path,patient\na.nii.gz,p\n").notes
    twins = write(tmp_path, "path\na.nii\na.nii.gz\nx/y_z.nii\nx_y/z.nii\n").table["scan"]
    assert twins.is_unique, "default ids are unique"


def test_a_frame_of_several_patients_is_named(tmp_path: Path) -> None:
    head = "path,patient,frame\n"
    assert not write(tmp_path, f"{head}a.nii,p,one\nb.nii,p,one\nc.nii,q,\n").notes
    (note,) = write(tmp_path, f"{head}a.nii,p,one\nb.nii,q,one\nc.nii,q,two\n").notes
    assert "1 frame has scans of several patients" in note and "one" in note


def test_cells_are_stripped_and_empty_columns_removed(tmp_path) -> None:
    table = write(tmp_path, "scan , Patient,path,,\n a,p , a.nii.gz,,\n").table
    assert table.loc[0, ["scan", "patient", "path"]].tolist() == ["a", "p", "a.nii.gz"] and "" not in table


def test_a_typing_error_among_numbers_is_reported_with_its_line(tmp_path) -> None:
    notes = write(tmp_path, "path,patient,volume\na.nii,p,12.5\n\nb.nii,q,13.l\nc.nii,r,9\n").notes
    assert (
        len(notes) == 1
        and notes[0].startswith("column volume: 1 of its 3 cells")
        and "'13.l' in" in notes[0]
        and ":4)" in notes[0]
    )


JSON = (
    '[{"scan": "001", "patient": 7, "path": "a.nii.gz", "age": 40.50}, '
    '{"scan": "b", "patient": 1e3, "path": "b.nii.gz", "age": null}]'
)


def test_a_table_may_be_tsv_or_json_with_numbers_as_written(tmp_path) -> None:
    (tmp_path / "manifest.json").write_text(JSON)
    table = SOURCES.get("csv")(tmp_path).table
    assert (
        table["scan"].tolist() == ["001", "b"]
        and table["patient"].tolist() == ["7", "1e3"]
        and table["age"].tolist() == ["40.50", ""]
    )
    assert SOURCES.get("csv")(tmp_path / "manifest.json").table.equals(table)
    (tmp_path / "manifest.tsv").write_text(ROWS.replace(",", "\t"))
    with pytest.raises(DataError, match=r"manifest\.tsv and manifest\.json both exist"):
        SOURCES.get("csv")(tmp_path)
    assert SOURCES.get("csv")(tmp_path, manifest="manifest.tsv").table["scan"].tolist() == ["001", "010"]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (JSON[:-20], "manifest.json:1: cannot be read as JSON"),
        (JSON.replace("null", "NaN"), "NaN is not JSON"),
        (JSON.replace('"age": null', '"scan": "c"'), "['scan'] occur twice"),
        (JSON.replace("null", "[1]"), "age of object 2 is a list"),
        ('{"path": "a.nii.gz"}', "a list of objects"),
        ("[" * 100_000, "nested too deeply"),
        (JSON.replace("a.nii.gz", "\\ud800"), "\\ud800 is half a character"),
        (JSON.replace("a.nii.gz", "\\u0000"), "object 1: path = '\\x00': a zero byte"),
        (JSON.replace('"age": 40.50', '"age": 430'), "manifest.json: object 1: age = '430'"),
        ("[]", "a list of objects is needed"),
        ("[{}]", "the column path is missing"),
    ],
)
def test_a_damaged_json_table_is_refused(tmp_path, text, fault) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(DataError) as caught:
        SOURCES.get("csv")(tmp_path)
    assert fault in str(caught.value)


def test_paths_stay_inside_the_root_unless_allowed(tmp_path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "secret.nii.gz").write_bytes(b"x")
    (tmp_path / "root" / "link.nii.gz").symlink_to(tmp_path / "secret.nii.gz")
    (tmp_path / "root" / "loop.nii.gz").symlink_to(tmp_path / "root" / "loop.nii.gz")
    text = "scan,patient,path\na,p,a.nii.gz\n"
    manifest = write(tmp_path / "root", text)
    for path, fault in (
        ("../secret.nii.gz", "leaves"),
        ("/etc/hostname", "leaves"),
        ("link.nii.gz", "link out"),
        ("loop.nii.gz", ""),
    ):
        with pytest.raises(DataError, match=fault) if path != "loop.nii.gz" else _no_error():
            manifest.locate(path)
    allowed = SOURCES.get("csv")(tmp_path / "root", allow_outside=True)
    assert allowed.locate("../secret.nii.gz").read_bytes() == b"x"


def _no_error():
    # Python 3.13 resolves a loop without an error; check refuses the file later.
    import contextlib

    return contextlib.suppress(DataError)


def test_pipes_and_devices_do_not_block(tmp_path) -> None:
    for name in ("manifest.csv", "labels.json"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(DataError, match=f"{name}: is a pipe or a device, not a file"):
            SOURCES.get("csv")(tmp_path)
        (tmp_path / name).unlink()
        (tmp_path / "manifest.csv").write_text(ROWS)
    (tmp_path / "manifest.csv").unlink()
    (tmp_path / "manifest.json").symlink_to("/dev/zero")
    with pytest.raises(DataError, match="is a pipe or a device"):
        SOURCES.get("csv")(tmp_path)
    with pytest.raises(DataError, match=r"absent\.csv: there is no such file; needed is a table"):
        SOURCES.get("csv")(tmp_path / "absent.csv")


def test_unreachable_files_are_not_reported_as_missing(tmp_path, monkeypatch) -> None:
    long = "x" * 300 + ".nii.gz"
    manifest = write(tmp_path, f"path,patient\n{long},p\nlocked/a.nii.gz,q\nabsent.nii.gz,r\n")
    real = Path.lstat

    def lstat(path: Path):
        if "locked" in path.parts:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(Path, "lstat", lstat)
    assert manifest.locate("locked/a.nii.gz") == tmp_path / "locked/a.nii.gz"
    with pytest.raises(DataError, match="cannot be read: File name too long"):
        read_header(manifest.locate(long))
    assert manifest.missing() == ["locked/a.nii.gz", "absent.nii.gz"], (
        "these do not exist; the long name has another cause"
    )


def test_a_file_name_that_is_not_utf_8_is_refused_early(tmp_path) -> None:
    (tmp_path / os.fsdecode(b"M\xfcller.nii.gz")).write_bytes(b"x")
    with pytest.raises(DataError, match=r"is not UTF-8; rename the file") as caught:
        SOURCES.get("folder")(tmp_path, pattern="{patient}.nii.gz")
    str(caught.value).encode()


def test_background_is_declared_by_default(tmp_path) -> None:
    (tmp_path / "labels.json").write_text('{"1": "liver", "2": "spleen"}')
    assert write(tmp_path, ROWS).label_names == {0: "background", 1: "liver", 2: "spleen"}
    (tmp_path / "labels.json").write_text('{"0": "air", "1": "liver"}')
    assert write(tmp_path, ROWS).label_names == {0: "air", 1: "liver"}
    for wrong in ('{"liver": 1}', '["liver"]', '{"1": {"name": "liver"}}', '{"1.5": "liver"}'):
        (tmp_path / "labels.json").write_text(wrong)
        with pytest.raises(DataError, match=r"labels\.json: .*needed is an object like"):
            write(tmp_path, ROWS)


def test_missing_files_are_counted_with_the_first_ten_and_the_root(tmp_path) -> None:
    rows = "".join(f"s{i},p{i},images/{i}.nii.gz\n" for i in range(14))
    manifest = write(tmp_path, "scan,patient,path\n" + rows)
    line = manifest.describe_missing(manifest.missing())
    assert line.startswith(f"14 files of the manifest are missing under {tmp_path}")
    assert "images/9.nii.gz" in line and "images/10.nii.gz" not in line
    assert line.endswith("images/9.nii.gz")
    home = write(tmp_path, "path\n~/a.nii.gz\n")
    assert home.describe_missing(home.missing()).endswith(
        "~/a.nii.gz (~ is not expanded: write the full path)"
    )
    number = write(tmp_path, "path,label\na.nii.gz,1\n")
    assert "write numbers in the column class" in number.describe_missing(["1"])
    windows = write(tmp_path, "path\nscans\\a.nii.gz\n")
    assert "folders are separated by /" in windows.describe_missing(windows.missing())


def test_the_decathlon_is_read_with_its_classes(real) -> None:
    manifest = SOURCES.get("decathlon")(real / "hippocampus")
    assert len(manifest) == 200 and manifest.label_names == {0: "background", 1: "Anterior", 2: "Posterior"}
    assert manifest.missing() == []
    assert manifest.table["patient"].is_unique


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("{", "JSON"),
        ('{"training": [{"image": "a.nii.gz"}], "training": []}', "occur twice"),
        ('{"training": [{"image": NaN}]}', "not JSON"),
        ('{"training": [{"label": "a"}]}', r"layout: training\[0\]"),
        ('{"training": [{"image": 5}]}', r"layout: training\[0\]"),
        ('{"training": [{"image": "a"}, null]}', r"layout: training\[1\]"),
        ('{"training": {}}', "layout: training is not a list"),
        ('{"training": []}', "lists no image"),
        ('{"training": [{"image": "a"}], "test": {"a": 1}}', "layout: test is not a list"),
        ('{"training": [{"image": "a"}], "labels": ["bg"]}', "classes are not an object"),
        ('{"channel_names": {"0": "CT"}}', "source nnunet"),
        ("[]", "object"),
    ],
)
def test_a_damaged_decathlon_is_refused(tmp_path, text, fault) -> None:
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(DataError, match=fault) as caught:
        SOURCES.get("decathlon")(tmp_path)
    assert "\n" not in str(caught.value) and "dataset.json" in str(caught.value)


@pytest.mark.parametrize(
    ("modality", "read"),
    [
        ({"0": "FLAIR", "1": "T1w"}, "FLAIR+T1w"),
        (["MRI"], "MRI"),
        ("CT", "CT"),
        (None, "unknown"),
        ({}, "unknown"),
    ],
)
def test_modalities_of_a_decathlon_have_several_forms(tmp_path, write_nifti, modality, read) -> None:
    for file in ("imagesTr/a", "imagesTr/spare", "imagesTs/a"):
        write_nifti(f"{file}.nii.gz", np.zeros((2, 2, 2), np.uint8))
    about = {
        "modality": modality,
        "labels": {"1": "x"},
        "training": [{"image": "./imagesTr/a.nii.gz"}],
        "test": ["./imagesTs/a.nii.gz"],
    }
    (tmp_path / "dataset.json").write_text(json.dumps(about))
    manifest = SOURCES.get("decathlon")(tmp_path)
    assert set(manifest.table["modality"]) == {read} and manifest.label_names == {0: "background", 1: "x"}
    assert manifest.table["scan"].tolist() == ["imagesTr_a", "imagesTs_a"]
    assert "1 images are not listed in dataset.json and are skipped (imagesTr/spare.nii.gz)" in manifest.notes


@pytest.mark.parametrize(("folder", "num"), [("sarcoma", 120), ("sunnybrook", 90)])
def test_real_tables_are_read(real, folder, num) -> None:
    manifest = SOURCES.get("csv")(real / folder)
    assert len(manifest) == num and manifest.missing() == []
    if folder == "sarcoma":
        frames = manifest.table.set_index("scan")["frame"]
        assert frames["STS_001_CT"] == frames["STS_001_PET"] != frames["STS_001_MR"]


def test_an_absent_table_is_refused_in_one_line(tmp_path) -> None:
    with pytest.raises(DataError, match="there is no such file"):
        read_table(tmp_path / "absent.csv")


def test_dates_in_session_days_become_days(tmp_path) -> None:
    manifest = write(
        tmp_path,
        "path,patient,session_days\na,p,2001-01-01T15:00\nb,p,2001-01-08 09:00\nc,q,2002-05-05\nd,q,n/a\n",
    )
    assert manifest.table["session_days"].tolist() == ["0", "7", "0", ""]
    assert (
        "column session_days: dates were converted to days from the first date of each patient"
        in manifest.notes
    )
    for other in ("7", "01/02/2001", "20011301"):
        with pytest.raises(
            DataError,
            match=rf"manifest\.csv:3: session_days = '{other}': not a date as 2001-02-28, unlike other cells",
        ):
            write(tmp_path, f"path,patient,session_days\na,p,2001-01-01\nb,p,{other}\n")


def test_dates_of_eight_digits_are_not_read_as_days(tmp_path) -> None:
    """As in DICOM: the day after 31 January is 1 February, not 70 days later."""
    manifest = write(tmp_path, "path,patient,session_days\na,p,20010131\nb,p,20010201\nc,q,20020505\n")
    assert manifest.table["session_days"].tolist() == ["0", "1", "0"] and any(
        "converted to days" in note for note in manifest.notes
    )
    assert write(tmp_path, "path,patient,session_days\na,p,44927\nb,p,44928\n").table[
        "session_days"
    ].tolist() == ["44927", "44928"]


def test_ages_above_a_limit_are_read_in_any_table(tmp_path) -> None:
    manifest = write(tmp_path, "path,patient,Age,AgeAtVisit,stage\na,p,89+,>89,3+\nb,q,50,50,1\n")
    assert manifest.table[["Age", "AgeAtVisit", "stage"]].iloc[0].tolist() == ["89", "89", "3+"]


def test_a_workbook_is_refused_by_name(tmp_path) -> None:
    (tmp_path / "a.csv").write_bytes(b"PK\x03\x04" + b"x" * 50)
    with pytest.raises(
        DataError, match="is a workbook or another zip archive, not a table; save the sheet as CSV"
    ):
        SOURCES.get("csv")(tmp_path / "a.csv")


def test_absolute_and_parent_paths_within_the_root_are_accepted(tmp_path) -> None:
    real, other = tmp_path / "real", tmp_path / "other"
    (real / "sub").mkdir(parents=True)
    other.mkdir()
    for place in (
        *(real / name for name in ("a.nii.gz", "b.nii.gz", "c.nii.gz", "sub/d.nii.gz")),
        other / "e.nii.gz",
    ):
        place.write_bytes(b"x")
    root = tmp_path / "link"
    root.symlink_to(real)
    (real / "out").symlink_to(other)
    paths = [
        f"{root}/a.nii.gz",
        f"{real}/b.nii.gz",
        "sub/../c.nii.gz",
        "../real/sub/d.nii.gz",
        f"{other}/e.nii.gz",
        "out/e.nii.gz",
    ]
    manifest = write(root, "path,patient\n" + "".join(f"{path},p{at}\n" for at, path in enumerate(paths)))
    assert manifest.table["path"].tolist() == ["a.nii.gz", "b.nii.gz", "c.nii.gz", "sub/d.nii.gz", *paths[4:]]
    assert manifest.table["scan"].tolist()[:4] == ["a", "b", "c", "sub_d"]
    for path in paths[:4]:
        assert manifest.locate(path).samefile(manifest.locate(manifest.table["path"][paths.index(path)]))
    for path, fault in (
        (paths[4], "leaves the root"),
        (paths[5], "link out of the root"),
        (f"{root}/out/e.nii.gz", "leaves the root"),
    ):
        with pytest.raises(DataError, match=fault):
            manifest.locate(path)
    with pytest.raises(DataError, match=r": also .*manifest.csv:3 has this"):
        write(root, f"path,patient\na.nii.gz,p\n{real}/a.nii.gz,q\n")


@pytest.mark.parametrize(
    ("first", "delimiter"),
    [
        ("sep=;", ";"),
        ("sep=,", ","),
        ("sep=\t", "\t"),
        (r"sep=\t", "\t"),
        ('"sep=;"', ";"),
        ("SEP=|", "|"),
        ('"sep=;";;', ";"),
        ("sep=;\r", ";"),
    ],
)
def test_the_sep_line_of_excel_sets_the_delimiter(tmp_path, first, delimiter) -> None:
    rows = [("path", "patient", "note"), ("a.nii.gz", "p", "x,y;z"), ("b.nii.gz", "q", "")]
    quoted = [delimiter.join(f'"{cell}"' for cell in row) for row in rows]
    manifest = write(tmp_path, "\n".join([first, *quoted]) + "\n")
    assert manifest.table["patient"].tolist() == ["p", "q"] and manifest.table["note"].tolist() == [
        "x,y;z",
        "",
    ]
    with pytest.raises(DataError, match=r"manifest\.csv:4: 1 cells under 3 column names"):
        write(tmp_path, "\n".join([first, *quoted[:2], "alone"]) + "\n")


@pytest.mark.parametrize(
    "text",
    [
        ",path,patient\n0,a.nii.gz,p\n1,b.nii.gz,q\n",  # the index of a data frame, written by pandas
        '"","path","patient"\n"1","a.nii.gz","p"\n"2","b.nii.gz","q"\n',  # and by R
        "path,patient\na.nii.gz,p,,\nb.nii.gz,q,\n",  # delimiters at the end of lines
        "path|patient\na.nii.gz|p\nb.nii.gz|q\n",
    ],
)
def test_additions_of_other_programs_are_read(tmp_path, text) -> None:
    table = write(tmp_path, text).table
    assert table["path"].tolist() == ["a.nii.gz", "b.nii.gz"] and table["patient"].tolist() == ["p", "q"]
    assert "" not in table.columns


def test_another_column_without_a_name_is_refused(tmp_path) -> None:
    with pytest.raises(DataError, match=r"manifest\.csv:1: column 1 has no name"):
        write(tmp_path, ",path,patient\n7,a.nii.gz,p\n7,b.nii.gz,q\n")


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("file:///data/a.nii.gz", "URLs are not read: write the path"),
        ("$DATA/a.nii.gz", r"\$ is not expanded"),
    ],
)
def test_unexpanded_paths_have_a_hint(tmp_path, path, words) -> None:
    manifest = write(tmp_path, f"path,patient\n{path},p\n")
    with pytest.raises(DataError, match=words):
        raise DataError(manifest.describe_missing(manifest.missing()))


def test_a_name_of_two_classes_is_made_unique(tmp_path: Path) -> None:
    (tmp_path / "labels.json").write_text('{"1": "lesion", "2": "lesion", "3": "vessel"}')
    assert write(tmp_path, "path,patient\na.nii,p\n").label_names == {
        0: "background",
        1: "lesion 1",
        2: "lesion 2",
        3: "vessel",
    }

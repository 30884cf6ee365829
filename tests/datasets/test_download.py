"""Downloads over real sockets: complete, interrupted, damaged, hostile, and failing."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
import shlex
import socket
import tarfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest

from medcl3d.config.loading import read_options
from medcl3d.core.errors import DataError, MachineError
from medcl3d.datasets import public_sets as table
from medcl3d.datasets.download import download, dry_run
from medcl3d.datasets.public_sets import KnownSet, find_set, known_sets
from medcl3d.preprocessing.options import prepare_options
from tests.datasets.test_medmnist import write
from tests.test_cli import medcl3d

Add = Callable[[tarfile.TarFile], None]


@dataclass
class Served:
    """The responses of a local server, and its requests."""

    content: bytes = b""
    cuts: list[int] = field(default_factory=list)  # bytes after which responses end early
    ranges: bool = True
    status: int = 200
    requests: list[str] = field(default_factory=list)
    url: str = ""


@pytest.fixture
def server() -> Iterator[Served]:
    served = Served()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requested = self.headers.get("Range", "")
            served.requests.append(requested)
            start = int(requested.removeprefix("bytes=").rstrip("-")) if requested and served.ranges else 0
            if served.status != 200 or start >= len(served.content):
                self.send_error(416 if served.status == 200 else served.status)
                return
            self.send_response(206 if start else 200)
            if start:
                self.send_header(
                    "Content-Range", f"bytes {start}-{len(served.content) - 1}/{len(served.content)}"
                )
            self.send_header("Content-Length", str(len(served.content) - start))
            self.end_headers()
            end = start + served.cuts.pop(0) if served.cuts else None
            self.wfile.write(served.content[start:end])

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        served.url = f"http://127.0.0.1:{listening.server_port}"
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        yield served
        listening.shutdown()


def offered(server: Served, content: bytes, like: str = "Task04_Hippocampus") -> KnownSet:
    """A set of the table, with the content of the server."""
    server.content = content
    known = find_set(like)
    return replace(
        known, url=f"{server.url}/{known.file}", md5=hashlib.md5(content).hexdigest(), num_bytes=len(content)
    )


def archive(*adds: Add) -> bytes:
    """A tar file in the Decathlon's layout: four labelled images, one unlabelled; and additions."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        images = [
            {"image": f"./imagesTr/a_{i}.nii.gz", "label": f"./labelsTr/a_{i}.nii.gz"} for i in range(4)
        ]
        about = {
            "modality": {"0": "MRI"},
            "labels": {"0": "background", "1": "organ"},
            "training": images,
            "test": ["./imagesTs/b.nii.gz"],
        }
        put(tar, "Task04_Hippocampus/dataset.json", json.dumps(about).encode())
        rng = np.random.default_rng(0)
        for i in range(4):
            put(
                tar,
                f"Task04_Hippocampus/imagesTr/a_{i}.nii.gz",
                volume(rng.normal(100, 20, (12, 12, 12)).astype(np.float32)),
            )
            put(
                tar,
                f"Task04_Hippocampus/labelsTr/a_{i}.nii.gz",
                volume(rng.integers(0, 2, (12, 12, 12), dtype=np.uint8)),
            )
        put(
            tar,
            "Task04_Hippocampus/imagesTs/b.nii.gz",
            volume(rng.normal(100, 20, (12, 12, 12)).astype(np.float32)),
        )
        put(tar, "./._Task04_Hippocampus", b"resource fork of macOS")
        for add in adds:
            add(tar)
    return out.getvalue()


def put(tar: tarfile.TarFile, name: str, content: bytes = b"", **fields: object) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for key, value in fields.items():
        setattr(member, key, value)
    tar.addfile(member, io.BytesIO(content))


def volume(voxels: np.ndarray) -> bytes:
    return gzip.compress(nibabel.Nifti1Image(voxels, np.eye(4)).to_bytes())


def quiet(_: str) -> None:
    pass


def names_in(folder: Path) -> set[str]:
    """Names in a folder without the lock."""
    return {path.name for path in folder.iterdir() if path.suffix != ".lock"}


def test_a_set_is_downloaded_and_unpacked_once(server: Served, tmp_path: Path) -> None:
    known, lines = offered(server, archive()), []
    place = download(known, tmp_path, lines.append)
    assert place == tmp_path / "Task04_Hippocampus" and (place / "imagesTr/a_1.nii.gz").is_file()
    assert "CC BY-SA 4.0" in lines[0] and known.size in lines[0] and "medcl3d prepare decathlon" in lines[-1]
    assert names_in(tmp_path) == {"Task04_Hippocampus", "Task04_Hippocampus.tar"}
    (tmp_path / known.file).unlink()
    before = {path: path.stat().st_mtime_ns for path in place.rglob("*")}
    download(known, tmp_path, lines.append)
    assert server.requests == [""] and before == {path: path.stat().st_mtime_ns for path in place.rglob("*")}
    assert any("exists already" in line for line in lines)


def test_an_interrupted_download_resumes(server: Served, tmp_path: Path) -> None:
    known = offered(server, archive())
    server.cuts = [5000, 7000]
    download(known, tmp_path, quiet)
    assert server.requests == ["", "bytes=5000-", "bytes=12000-"]
    assert (tmp_path / known.file).read_bytes() == server.content


def test_the_partial_file_of_an_ended_process_is_used(server: Served, tmp_path: Path) -> None:
    known = offered(server, archive())
    (tmp_path / f"{known.file}.part").write_bytes(server.content[:9000])
    partial = tmp_path / ".Task04_Hippocampus.part"
    partial.mkdir()
    (partial / "old").touch()
    place = download(known, tmp_path, quiet)
    assert server.requests == ["bytes=9000-"] and not (place / "old").exists() and not partial.exists()


def test_a_complete_partial_file_is_not_downloaded_again(server: Served, tmp_path: Path) -> None:
    known = offered(server, archive())
    (tmp_path / f"{known.file}.part").write_bytes(server.content)
    download(known, tmp_path, quiet)
    assert (tmp_path / known.file).read_bytes() == server.content


def test_a_server_without_ranges_starts_again(server: Served, tmp_path: Path) -> None:
    known = offered(server, archive())
    server.ranges, server.cuts = False, [5000]
    download(known, tmp_path, quiet)
    assert server.requests == ["", "bytes=5000-"] and (tmp_path / known.file).read_bytes() == server.content


def test_a_server_that_always_interrupts_ends_the_download_and_bytes_are_kept(
    server: Served, tmp_path: Path
) -> None:
    known = offered(server, archive())
    server.ranges, server.cuts = False, [5000] * 50
    with pytest.raises(MachineError, match=r"the connection was interrupted; 5000 bytes were kept") as error:
        download(known, tmp_path, quiet)
    assert str(tmp_path / known.file) in str(error.value) and len(server.requests) == 2
    assert names_in(tmp_path) == {f"{known.file}.part"}


def test_wrong_content_is_deleted_and_not_unpacked(server: Served, tmp_path: Path) -> None:
    known = replace(offered(server, archive()), md5="0" * 32)
    with pytest.raises(
        DataError, match=r"checksum mismatch: expected MD5 0{32}, got [0-9a-f]{32} of \d+ bytes"
    ):
        download(known, tmp_path, quiet)
    assert names_in(tmp_path) == set()


def test_a_truncated_manual_download_is_refused_and_kept(server: Served, tmp_path: Path) -> None:
    known = offered(server, archive())
    (tmp_path / known.file).write_bytes(server.content[:-1])
    with pytest.raises(DataError, match=r"checksum mismatch: .*; delete the file and download it again"):
        download(known, tmp_path, quiet)
    assert names_in(tmp_path) == {known.file} and server.requests == []


def test_without_a_network_the_error_has_a_remedy_and_a_manual_download_is_used(
    server: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = offered(server, archive())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        unreachable = f"http://127.0.0.1:{free.getsockname()[1]}/{known.file}"
    monkeypatch.setitem(known_sets(), known.name, replace(known, url=unreachable))
    done = medcl3d("download", known.name, "--out", tmp_path / "sets")
    assert done.exit_code == 4 and len(done.stderr.splitlines()) == 1
    assert (
        unreachable in done.stderr
        and "refused" in done.stderr
        and f"put it at {tmp_path / 'sets' / known.file}" in done.stderr
    )
    (tmp_path / "sets" / known.file).write_bytes(server.content)
    done = medcl3d("download", known.name, "--out", tmp_path / "sets")
    assert done.exit_code == 0, done.output
    assert (tmp_path / "sets/Task04_Hippocampus/dataset.json").is_file()


def test_http_errors_are_reported(server: Served, tmp_path: Path) -> None:
    known = offered(server, archive())
    server.status = 404
    with pytest.raises(MachineError, match="answers 404"):
        download(known, tmp_path, quiet)


@pytest.mark.parametrize(
    ("add", "message"),
    [
        (lambda tar: put(tar, "Task04_Hippocampus/../../evil", b"x"), "would be outside the folder"),
        (lambda tar: put(tar, "../evil", b"x"), "would be outside the folder"),
        (lambda tar: put(tar, "/medcl3d_evil", b"x"), "would be outside the folder"),
        (lambda tar: put(tar, "out", type=tarfile.SYMTYPE, linkname="/etc/passwd"), "is a link"),
        (
            lambda tar: put(tar, "within", type=tarfile.SYMTYPE, linkname="Task04_Hippocampus/dataset.json"),
            "is a link",
        ),
        (
            lambda tar: put(tar, "hard", type=tarfile.LNKTYPE, linkname="Task04_Hippocampus/dataset.json"),
            "is a link",
        ),
        (lambda tar: put(tar, "pipe", type=tarfile.FIFOTYPE), "is a device or a pipe"),
        (lambda tar: put(tar, "device", type=tarfile.CHRTYPE), "is a device or a pipe"),
    ],
)
def test_a_hostile_archive_is_refused_before_anything_is_written(
    server: Served, tmp_path: Path, add: Add, message: str
) -> None:
    known, out = offered(server, archive(add)), tmp_path / "deep" / "sets"
    with pytest.raises(DataError, match=message):
        download(known, out, quiet)
    assert (
        names_in(out) == {known.file}
        and list(tmp_path.rglob("evil")) == []
        and not Path("/medcl3d_evil").exists()
    )


def test_a_file_that_is_not_an_archive_is_refused(server: Served, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be unpacked"):
        download(offered(server, b"<html>" * 1000), tmp_path, quiet)
    assert names_in(tmp_path) == {"Task04_Hippocampus.tar"}


def test_a_folder_of_unknown_origin_or_incomplete_is_refused(server: Served, tmp_path: Path) -> None:
    known = offered(server, archive())
    (tmp_path / known.name).mkdir()
    with pytest.raises(DataError, match="exists, but may be incomplete"):
        download(known, tmp_path, quiet)
    (tmp_path / known.name).rmdir()
    place = download(known, tmp_path, quiet)
    (place / "labelsTr/a_0.nii.gz").write_bytes(b"")
    with pytest.raises(DataError, match=r"1 of 10 files are missing or truncated, first labelsTr/a_0"):
        download(known, tmp_path, quiet)


def test_too_little_disk_space_is_refused_before_the_download(server: Served, tmp_path: Path) -> None:
    known = replace(offered(server, archive()), num_bytes=10**18)
    with pytest.raises(
        MachineError, match=r"are free, 1e\+06 TB to download and 1e\+06 TB to unpack are needed"
    ):
        download(known, tmp_path, quiet)
    assert server.requests == [] and names_in(tmp_path) == set()


def test_a_concurrent_download_is_refused(server: Served, tmp_path: Path) -> None:
    from filelock import FileLock

    known = offered(server, archive())
    with FileLock(tmp_path / f".{known.file}.lock"), pytest.raises(MachineError, match="another process"):
        download(known, tmp_path, quiet)


def test_a_downloaded_decathlon_is_prepared(
    server: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    known = offered(server, archive())
    monkeypatch.setitem(known_sets(), known.name, known)
    done = medcl3d("download", known.name, "--out", "sets")
    assert done.exit_code == 0, done.output
    _, *command = shlex.split(done.stdout.splitlines()[-1])
    done = medcl3d(*command, "workers=1")
    assert done.exit_code == 0 and "5 scans of 5 patients" in done.stdout, done.output


def test_a_downloaded_medmnist_is_prepared(
    server: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    content = write(tmp_path / "toy.npz").read_bytes()
    known = offered(server, content, "adrenalmnist3d")
    monkeypatch.setitem(known_sets(), known.name, known)
    for _ in range(2):
        done = medcl3d("download", known.name, "--out", "sets")
        assert done.exit_code == 0, done.output
    assert server.requests == [""] and names_in(Path("sets")) == {"adrenalmnist3d.npz"}
    _, *command = shlex.split(done.stdout.splitlines()[-1])
    done = medcl3d(*command, "workers=1")
    assert done.exit_code == 0 and "10 scans of 10 patients" in done.stdout, done.output


def test_a_downloaded_ixi_is_prepared(
    server: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its archive has no top folder."""
    monkeypatch.chdir(tmp_path)
    out, rng = io.BytesIO(), np.random.default_rng(0)
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name in ("IXI002-Guys-0828-T1", "IXI012-HH-1211-T1", "IXI035-IOP-0873-T1"):
            put(tar, f"{name}.nii.gz", volume(rng.normal(100, 20, (12, 12, 12)).astype(np.float32)))
    known = offered(server, out.getvalue(), "IXI-T1")
    monkeypatch.setitem(known_sets(), known.name, known)
    done = medcl3d("download", known.name, "--out", "sets")
    _, *command = shlex.split(done.stdout.splitlines()[-1])
    done = medcl3d(*command, "workers=1")
    assert done.exit_code == 0, done.output
    manifest = Path("data/IXI-T1/manifest.csv").read_text()
    assert "IXI012" in manifest and "Guys" in manifest


@pytest.mark.parametrize("name", ["adrenalmnist3d", "adrenalmnist3d_64"])
def test_the_table_matches_real_files(server: Served, tmp_path: Path, shared_data: Path, name: str) -> None:
    content = (shared_data / "medmnist" / f"{name}.npz").read_bytes()
    known = find_set(name)
    assert known.num_bytes == len(content)
    server.content = content
    assert download(replace(known, url=f"{server.url}/{known.file}"), tmp_path, quiet).read_bytes() == content


@pytest.mark.parametrize("name", sorted(known_sets()))
def test_every_set_has_complete_metadata(name: str) -> None:
    known = find_set(name)
    assert (
        known.url.startswith("https://")
        and re.fullmatch("[0-9a-f]{32}", known.md5)
        and known.file.startswith(name)
    )
    assert known.licence.startswith("CC BY") and known.num_scans > 0 and known.num_bytes > 100_000
    _, command, source, root, *words = shlex.split(known.prepare_command(Path("some where")))
    assert command == "prepare" and root == str(known.place(Path("some where")))
    prepare_options(source, read_options([word for word in words if "=" in word]))


def test_the_table_has_all_sets() -> None:
    from monai.apps import DecathlonDataset
    from torchio.datasets import IXI

    assert set(table.DECATHLON) == set(DecathlonDataset.md5)
    assert set(table.IXI) == set(IXI.md5_dict) - {"DTI"}
    assert len({known.md5 for known in known_sets().values()}) == len(known_sets()) == 10 + 4 + 12


def test_the_dry_run_reports_the_download_without_a_connection(
    server: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = offered(server, archive())
    lines: list[str] = []
    dry_run(known, tmp_path / "sets", lines.append)
    size = table.format_size(len(server.content))
    assert any(f"{size} to download and {size} to unpack" in line for line in lines) and any(
        "medcl3d prepare" in line for line in lines
    )
    assert not server.requests and not list(tmp_path.iterdir())
    (tmp_path / f"{known.file}.part").write_bytes(server.content[:1000])
    dry_run(known, tmp_path, lines.append)
    assert f"{table.format_size(len(server.content) - 1000)} to download" in lines[-2]
    download(known, tmp_path, lines.append)
    num_requests = len(server.requests)
    dry_run(known, tmp_path, lines.append)
    assert "nothing would be downloaded" in lines[-1] and len(server.requests) == num_requests
    monkeypatch.setattr("medcl3d.datasets.unpack.shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(MachineError, match="1 kB are free"):
        dry_run(known, tmp_path / "elsewhere", lines.append)
    with pytest.raises(MachineError, match="cannot write in /proc"):
        dry_run(known, Path("/proc/sets"), lines.append)

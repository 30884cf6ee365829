"""Public data sets by name: content, licence, size and checksum."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from medcl3d.config.suggestions import nearest
from medcl3d.core.errors import ConfigError
from medcl3d.io.disk_space import format_size

# Name in the archive of the Decathlon -> content, modality, scans with and without labels, bytes of the tar
# file, options of prepare. Counts are of the released files, which are fewer than in the papers for
# hippocampus and lung. Bytes are from web pages about the sets.
DECATHLON = {
    "Task01_BrainTumour": (
        "gliomas and oedema", "MR: FLAIR, T1, T1 with Gd, T2", 484, 266, 7_608_266_240, "channels=all"
    ),
    "Task02_Heart": ("left atrium", "MR", 20, 10, 455_721_472, ""),
    "Task03_Liver": ("liver and its tumours", "CT", 131, 70, 28_925_891_584, ""),
    "Task04_Hippocampus": ("hippocampus, anterior and posterior", "MR", 260, 130, 28_400_000, ""),
    "Task05_Prostate": (
        "prostate, peripheral and transition zone", "MR: T2, ADC", 32, 16, 240_000_000, "channels=all"
    ),
    "Task06_Lung": ("lung tumours", "CT", 63, 32, 9_163_696_640, ""),
    "Task07_Pancreas": ("pancreas and its tumours", "CT", 281, 139, 12_200_000_000, ""),
    "Task08_HepaticVessel": ("vessels and tumours of the liver", "CT", 303, 140, 9_300_000_000, ""),
    "Task09_Spleen": ("spleen", "CT", 41, 20, 1_610_000_000, ""),
    "Task10_Colon": ("primary cancers of the colon", "CT", 126, 64, 6_200_000_000, ""),
}  # fmt: skip
# Contrast -> scans, bytes of the tar file. Without IXI-DTI: its volumes are directions of one series.
IXI = {
    "T1": (581, 4_840_816_640),
    "T2": (578, 3_853_445_120),
    "PD": (578, 4_068_966_400),
    "MRA": (570, 12_400_000_000),
}
# Name -> content, modality, samples, MD5 of the files of 28 and of 64 voxels per side.
# From `medmnist/info.py` of MedMNIST 3.0 (record 10519652 at Zenodo); the package requires torchvision.
MEDMNIST = {
    "organmnist3d": ("11 organs", "CT", 1742,
        "a0c5a1ff56af4f155c46d46fbb45a2fe", "58a2205adf14a9d0a189cb06dc78bf10"),
    "nodulemnist3d": ("lung nodules", "CT", 1633,
        "8755a7e9e05a4d9ce80a24c3e7a256f3", "c47c5b7d457bf6332200d2ea6d64ecd8"),
    "adrenalmnist3d": ("adrenal glands", "shape", 1584,
        "bbd3c5a5576322bc4cdfea780653b1ce", "17721accfe9fb005146a47d33bc54b2f"),
    "fracturemnist3d": ("rib fractures", "CT", 1370,
        "6aa7b0143a6b42da40027a9dda61302f", "f01d7e6316aedf4210da0da5b7437b42"),
    "vesselmnist3d": ("brain vessels", "shape", 1908,
        "b41fd4f7e7e2feedddb201585ecafa1b", "6bb274a8846e1097066dcd64e2c4520f"),
    "synapsemnist3d": ("synapses of a rat", "EM", 1759,
        "1235b78a3cd6280881dd7850a78eadb6", "43bd14ebf3af9d3dd072446fedc14d5e"),
}  # fmt: skip
MEASURED = {"adrenalmnist3d": 276_833, "adrenalmnist3d_64": 1_880_591}  # bytes


@dataclass(frozen=True, kw_only=True)
class KnownSet:
    """A public set: one file to download.

    name       of the set: the file without its suffix, and the folder of an unpacked archive
    num_bytes  of the file; `exactness` is "", "about " or "at most "
    prepare    arguments of `medcl3d prepare`, with {root} for the path of the set
    """

    name: str
    holds: str
    modality: str
    num_scans: int
    licence: str
    url: str
    md5: str
    num_bytes: int
    exactness: str
    source: str
    prepare: str

    @property
    def file(self) -> str:
        """Name of the downloaded file."""
        return PurePosixPath(urlsplit(self.url).path).name

    @property
    def is_archive(self) -> bool:
        """Whether the file is a tar archive."""
        return self.file.endswith(".tar")

    @property
    def size(self) -> str:
        """Size of the file with a unit."""
        return f"{self.exactness}{format_size(self.num_bytes)}"

    def place(self, out: Path) -> Path:
        """Path of the set for `prepare`, after a download into `out`."""
        return out / (self.name if self.is_archive else self.file)

    def prepare_command(self, out: Path) -> str:
        """The command that prepares it as a store."""
        return f"medcl3d prepare {self.prepare.replace('{root}', shlex.quote(str(self.place(out))))}"

    def about(self) -> str:
        """A description in several lines."""
        unpacked = ", and about as much again unpacked" if self.is_archive else ""
        rows = {
            "modality": self.modality,
            "scans": str(self.num_scans),
            "licence": self.licence,
            "size": self.size + unpacked,
            "MD5": self.md5,
            "from": self.url,
            "source": self.source,
        }
        lines = [f"{self.name} (set)", "", self.holds, "", *(f"{k:<10}{v}" for k, v in rows.items()), ""]
        out = Path("sets")
        return "\n".join([*lines, f"medcl3d download {self.name} --out {out}", self.prepare_command(out)])


@cache
def known_sets() -> dict[str, KnownSet]:
    """Name -> set."""
    return {known.name: known for known in (*_decathlon(), *_ixi(), *_medmnist())}


def find_set(name: str) -> KnownSet:
    """The set of that name. ConfigError if it is unknown."""
    names = sorted(known_sets())
    if name not in names:
        near = nearest(name, names)
        remedy = (f"did you mean {near!r}? " if near else "") + f"known sets: {', '.join(names)}"
        raise ConfigError(problem="not one of the sets", remedy=remedy, place=name)
    return known_sets()[name]


def _decathlon() -> Iterator[KnownSet]:
    """The ten tasks; URLs and MD5 are from MONAI."""
    from monai.apps import DecathlonDataset

    for name, (holds, modality, labelled, unlabelled, num_bytes, options) in DECATHLON.items():
        scans = f"{labelled} scans with label maps, {unlabelled} without"
        yield KnownSet(
            name=name,
            holds=f"Medical Segmentation Decathlon: {holds}; {scans}",
            modality=modality,
            num_scans=labelled + unlabelled,
            licence="CC BY-SA 4.0",
            url=DecathlonDataset.resource[name],
            md5=DecathlonDataset.md5[name],
            num_bytes=num_bytes,
            exactness="about ",
            source="Antonelli et al. 2022, Nat. Commun. 13:4128; Simpson et al. 2019, arXiv:1902.09063",
            prepare=f"decathlon {{root}} --out data/{name} {options}".rstrip(),
        )


PATTERN = "{patient}-{site}-*-{modality}.nii.gz"


def _ixi() -> Iterator[KnownSet]:
    """Healthy adults from three hospitals; URLs and MD5 are from TorchIO."""
    from torchio.datasets import IXI as KNOWN

    for contrast, (num_scans, num_bytes) in IXI.items():
        yield KnownSet(
            name=f"IXI-{contrast}",
            holds="brains of healthy adults, one scan each, from three hospitals in London (the column site)",
            modality=f"MR: {contrast}",
            num_scans=num_scans,
            licence="CC BY-SA 3.0",
            url=KNOWN.base_url.format(modality=contrast).replace("http://", "https://"),
            md5=KNOWN.md5_dict[contrast],
            num_bytes=num_bytes,
            exactness="about ",
            source="IXI, https://brain-development.org/ixi-dataset",
            prepare=f"folder {{root}} --out data/IXI-{contrast} 'pattern={PATTERN}'",
        )


def _medmnist() -> Iterator[KnownSet]:
    """The six 3-D sets in two sizes; an npz has at most one byte per voxel, and the labels."""
    for short, (holds, modality, num_scans, *checksums) in MEDMNIST.items():
        for side, md5 in zip((28, 64), checksums, strict=True):
            name = short if side == 28 else f"{short}_{side}"
            voxels = f"{side} x {side} x {side} voxels, with a class and an official split"
            yield KnownSet(
                name=name,
                holds=f"MedMNIST 3-D: {holds}; {voxels}",
                modality=modality,
                num_scans=num_scans,
                licence="CC BY 4.0",
                url=f"https://zenodo.org/records/10519652/files/{name}.npz?download=1",
                md5=md5,
                num_bytes=MEASURED.get(name, num_scans * (side**3 + 100)),
                exactness="" if name in MEASURED else "at most ",
                source="Yang et al. 2023, MedMNIST v2, Scientific Data 10:41",
                prepare=f"medmnist {{root}} --out data/{name}",
            )

"""Words in names of folders and files that mean label maps, modalities or sessions."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from typing import Literal

Kind = Literal["label", "modality", "session", "generic", "name"]

# In lower case, as whole words; also German, French and Spanish.
_LABEL = """
    seg segs segm segmentation segmentations segmentierung segmentierungen dseg mask masks maske masken masque
    masques mascara mascaras label labels labelmap labelmaps roi rois contour contours kontur konturen
    annotation annotations gt groundtruth delineation delineations
"""
_GENERIC = """
    image images img imgs bild bilder aufnahme aufnahmen scan scans volume volumes vol data daten dataset
    datasets raw rawdata source sourcedata nifti niftis nii gz dicom dicoms dcm export files file input inputs
    original originals orig tr ts train training test testing val validation anat func derivatives manual
    final study patients patienten subjects series serie serien
"""
_MODALITIES = """
    ct cta cbct ldct hrct pet pt spect mr mri mrt mra us t1 t1w t1c t1ce t1gd t1n t1km t2 t2w t2f t2s t2star
    flair pd pdw dwi adc swi tof bold cine dce dixon mprage
"""
LABEL_WORDS, GENERIC_WORDS, MODALITY_WORDS = (
    frozenset(text.split()) for text in (_LABEL, _GENERIC, _MODALITIES)
)
_LABEL_ENDINGS = ("mask", "masks", "maske", "masken", "labelmap", "segmentation", "segmentierung")
_MIXED_CASE = {"t1w": "T1w", "t2w": "T2w", "pdw": "PDw", "t2star": "T2star", "cine": "cine", "dixon": "Dixon"}
_SYNONYMS = {"mri": "MR", "mrt": "MR", "pt": "PET", "dixon": "Dixon"}
# With a number, as ses-1, visit 2, V2, tp01; alone, as baseline.
_SESSION = re.compile(
    r"(?<![^\W_])(?:(?:ses|session|sitzung|visit|visite|besuch|timepoint|tp|zeitpunkt|followup|fu|verlauf|v"
    r"|month|monat|week|day)[-_ ]?\d{1,4}|baseline|followup|follow-up|verlauf|kontrolle|pre|post|preop"
    r"|postop)(?![^\W_])",
    re.IGNORECASE,
)
_DATE = re.compile(r"(?<!\d)((?:19|20)\d\d([-_.]?)(?:0[1-9]|1[0-2])\2(?:0[1-9]|[12]\d|3[01]))(?!\d)")
_PATIENT = re.compile(
    r"(?:sub|subj|subject|pat|patient|patientin|proband|probandin|case|fall|person|p)[-_ ]?\d+"
)
_BETWEEN = re.compile(r"[\W_]+")
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")


def plain(text: str) -> str:
    """Text in lower case and one Unicode form."""
    return unicodedata.normalize("NFC", text).casefold()


@lru_cache(maxsize=65536)
def words(text: str) -> tuple[str, ...]:
    """The words of a name in lower case: ``labelsTr`` -> labels, tr."""
    apart = _CAMEL.sub(" ", unicodedata.normalize("NFC", text))
    return tuple(word.casefold() for word in _BETWEEN.split(apart) if word)


@lru_cache(maxsize=65536)
def is_label_word(word: str) -> bool:
    """Whether a word means label maps: ``seg``, ``Masken``, ``tumormask``."""
    word = plain(word)
    return word in LABEL_WORDS or word.endswith(_LABEL_ENDINGS)


@lru_cache(maxsize=65536)
def names_label_maps(text: str) -> bool:
    """Whether a name means label maps and nothing else, numbers apart: ``Masken``, ``seg 2``."""
    found = [word for word in words(text) if not word.isdigit()]
    return any(map(is_label_word, found)) and all(is_label_word(w) or w in GENERIC_WORDS for w in found)


def has_label_word(text: str) -> bool:
    """Whether a name has a word that means label maps: ``P01_seg``."""
    return any(map(is_label_word, words(text)))


def date_in(text: str) -> str:
    """The first date of a name, as ``2019-01-31``, "" if it has none."""
    found = _DATE.search(text)
    digits = re.sub(r"\D", "", found[1]) if found else ""
    return f"{digits[:4]}-{digits[4:6]}-{digits[6:]}" if digits else ""


@lru_cache(maxsize=65536)
def session_in(text: str) -> str:
    """The session that a name gives: a date, ``ses-1``, ``V2``, ``baseline``; "" if it gives none."""
    if date := date_in(text):
        return date
    found = _SESSION.search(text)
    return found[0] if found else ""


@lru_cache(maxsize=65536)
def modality_in(text: str) -> str:
    """The first modality that a name gives, in its usual spelling; "" if it gives none."""
    word = next((word for word in words(text) if word in MODALITY_WORDS), "")
    return _SYNONYMS.get(word) or _MIXED_CASE.get(word) or word.upper()


@lru_cache(maxsize=65536)
def is_patient_name(text: str) -> bool:
    """Whether a name is marked as that of a patient: ``sub-01``, ``Patient 3``, ``P017``."""
    return _PATIENT.match(plain(text)) is not None


@lru_cache(maxsize=65536)
def kind_of_name(text: str) -> Kind:
    """What the name of a folder means; `name` if it may be an id or a cohort."""
    if is_patient_name(text):
        return "name"
    if names_label_maps(text):
        return "label"
    found = words(text)
    if session_in(text):
        return "session"
    if found and all(word in GENERIC_WORDS for word in found):
        return "generic"
    is_modality = found and all(word in MODALITY_WORDS or word in GENERIC_WORDS for word in found)
    return "modality" if is_modality else "name"


def without_session(text: str) -> str:
    """A name without its date or session."""
    text = _DATE.sub("", text, count=1)
    return _SESSION.sub("", text, count=1)


def identifying_words(text: str) -> list[str]:
    """The words of a name that are not those of label maps or without a meaning."""
    return [word for word in words(text) if not is_label_word(word) and word not in GENERIC_WORDS]

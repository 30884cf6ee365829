"""Layouts of published weights, by the names that a configuration uses."""

from __future__ import annotations

from medcl3d.layouts.anatomix import ANATOMIX
from medcl3d.layouts.ct_fm import CT_FM
from medcl3d.layouts.layout import Layout
from medcl3d.layouts.nnunet import NNUNET, OPENMIND
from medcl3d.layouts.resnet import MEDICALNET, MONAI_RESNET
from medcl3d.layouts.swin_unetr import SWIN_UNETR

LAYOUTS: dict[str, Layout] = {
    "anatomix": ANATOMIX,
    "ct_fm": CT_FM,
    "medicalnet": MEDICALNET,
    "monai_resnet": MONAI_RESNET,
    "monai_swin_unetr": SWIN_UNETR,
    "nnunet": NNUNET,
    "openmind": OPENMIND,
}

"""The one module that imports TorchIO; others import it when they need it, since that takes a second.

`PairSampler` makes a TorchIO patch sampler of a pair strategy, for one's own `tio.Queue`; `torchio_batches`
trains through one (``loader: torchio``) and gives the very samples that the store's own loader gives.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
import torchio as tio
from jaxtyping import Shaped

from medcl3d.core.collection import Collection
from medcl3d.core.errors import ConfigError, DataError
from medcl3d.core.geometry import Box, Triple, ViewSpec, triple
from medcl3d.pairs import PairStrategy, crosses_patients
from medcl3d.sampling.crops import to_grid, view_affine

ROW = "row"  # of an image: its scan in the collection
DRAW = "draw"  # of a subject: which sample of the run it is for
KEY_BOX = "key_box"  # the boxes in the keys of strategies, in the form of the location
FILL = "fill"  # of an image: the value past its border
OF_TORCHIO = ("data", "affine", "path", "stem", "type", ROW, FILL)


class PairSampler(tio.data.PatchSampler):
    """A TorchIO sampler that cuts a whole sample of a pair strategy: all views that belong together.

    Its items are Subjects with the images ``view_0``, ``view_1``, ..., each with its affine and, under
    ``scan``, the name of the image that it was cut from; ``location`` is ``Int[views, 6]``, the first and
    last-plus-one voxel of each, as in TorchIO. So a `tio.Queue` may shuffle items; positives stay together.

    A subject holds the scans of one patient as `ScalarImage`, of any shapes and spacings. Further columns of
    strategies (session, session_days, modality, frame) are extra arguments of the image, as in
    ``tio.ScalarImage(path, session="2")``. Past the border of a scan the value is its attribute `fill`, else
    its minimum.

    strategy    of `medcl3d.pairs`, one that stays within a patient (ConfigError otherwise)
    patch_size  voxels of a view
    collection  what the strategy sees (default: the subject's own scans); each image then has its `row` in it

    Draws come from torch's generator, as those of TorchIO do.
    """

    def __init__(
        self, strategy: PairStrategy, patch_size: int | Triple, collection: Collection | None = None
    ):
        super().__init__(patch_size)
        refuse_across_patients(strategy)
        self.strategy, self.collection = strategy, collection

    def __call__(self, subject: tio.Subject, num_patches: int | None = None) -> Generator[tio.Subject]:
        """Samples of a subject, without end or `num_patches`. DataError if it has no anchor."""
        # TorchIO requires one grid per subject; here every scan keeps its own.
        return self._generate_patches(subject, num_patches)

    def _generate_patches(
        self, subject: tio.Subject, num_patches: int | None = None
    ) -> Generator[tio.Subject]:
        images = subject.get_images_dict()
        if self.collection is None:
            collection, names = collection_of(subject, triple(self.patch_size)), dict(enumerate(images))
        else:
            collection, names = (
                self.collection,
                {cast(int, image[ROW]): name for name, image in images.items()},
            )
        rng, anchor = np.random.default_rng(int(torch.randint(2**62, ()))), None
        if DRAW in subject:
            anchor, rng = cast(tuple[int, np.random.Generator], subject[DRAW])
        ids = self.strategy.anchors(collection).ids if anchor is None else np.array([anchor])
        while num_patches is None or num_patches > 0:
            views = self.strategy.sample(collection, int(rng.choice(ids)) if anchor is None else anchor, rng)
            if not names.keys() >= {view.scan for view in views}:
                raise DataError(
                    f"pairs: {type(self.strategy).__name__} drew a scan of another patient; use loader: store"
                )
            yield cut(images, names, collection, views)
            num_patches = None if num_patches is None else num_patches - 1


def refuse_across_patients(strategy: PairStrategy) -> None:
    """ConfigError for a strategy whose samples hold scans of several patients: a subject is one patient."""
    if crosses_patients(strategy):
        raise ConfigError(
            "pairs",
            None,
            f"{type(strategy).__name__} draws scans of several patients together, and a TorchIO "
            "subject holds those of one",
            "set loader: store",
        )


def cut(
    images: dict[str, Any], names: dict[int, str], collection: Collection, views: Sequence[ViewSpec]
) -> tio.Subject:
    """The views as images of one Subject."""
    content: dict[str, Any] = {}
    for number, view in enumerate(views):
        image = images[names[view.scan]]
        voxels = to_grid(crop_of(image, view.box), view)
        content[f"view_{number}"] = tio.ScalarImage(  # type: ignore[no-untyped-call]  # no types
            tensor=voxels,
            affine=view_affine(collection, view).numpy(),
            scan=names[view.scan],
            role=view.role,
            **{ROW: view.scan},
        )
    content[tio.LOCATION] = torch.tensor([[*view.box.start, *view.box.stop] for view in views])
    content[KEY_BOX] = torch.tensor(
        [[*box.start, *box.stop] for box in (view.key_box or view.box for view in views)]
    )
    return tio.Subject(content)


def crop_of(image: Any, box: Box) -> Shaped[torch.Tensor, "C D H W"]:
    """The box of an image, ``[C, D, H, W]``; past its border it has the fill value."""
    data: torch.Tensor = image.data
    shape = image.spatial_shape
    inside = tuple(
        slice(max(0, a), max(0, min(n, b))) for a, b, n in zip(box.start, box.stop, shape, strict=True)
    )
    part = data[(slice(None), *inside)]
    if part.shape[1:] == box.size:
        return part.clone()  # else the whole scan would stay in memory as long as its crop
    fill = torch.as_tensor(image.get(FILL, data.amin((1, 2, 3))), dtype=data.dtype)
    crop = fill[:, None, None, None].expand(-1, *box.size).clone()
    at = tuple(
        slice(s.start - a, s.start - a + n) for s, a, n in zip(inside, box.start, part.shape[1:], strict=True)
    )
    if part.numel():
        crop[(slice(None), *at)] = part
    return crop


def collection_of(subject: tio.Subject, patch_size: Triple) -> Collection:
    """The scalar images of a subject as the collection of one patient, by default named 1."""
    images = subject.get_images_dict()
    rows = [
        {
            "scan": name,
            "patient": str(subject.get("patient", "1")),
            "session": "1",
            "modality": "unknown",
            "frame": name,
        }
        | {key: value for key, value in image.items() if key not in OF_TORCHIO}
        for name, image in images.items()
    ]
    shapes = np.array([image.spatial_shape for image in images.values()])
    boxes = np.stack([np.zeros_like(shapes), shapes], axis=1)
    affines = np.stack([image.affine for image in images.values()])
    found = Collection.of(pd.DataFrame(rows), shapes, affines, boxes)
    return replace(found, patch_size=patch_size)

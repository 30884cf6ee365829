"""Dense contrastive learning: one embedding per point, compared with the points of the global batch."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, ClassVar

import torch
from einops import rearrange
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from medcl3d.config.field_types import NonNegative, Positive, PositiveInt
from medcl3d.core.batch import REGION, PairBatch, Points, ViewGroup
from medcl3d.core.device import to_device
from medcl3d.core.embeddings import Embedded, Embeddings, Loss
from medcl3d.core.errors import ConfigError
from medcl3d.core.keys import Keys
from medcl3d.core.relation import Relate, Relation
from medcl3d.encoders.network import Network
from medcl3d.losses.contrastive import Denominator, denominator_kind
from medcl3d.objectives import OBJECTIVES
from medcl3d.objectives.contrast import contrast
from medcl3d.objectives.projector import HeadNorm, Projector
from medcl3d.objectives.relating import Relating
from medcl3d.pairs.pair_of_crops import relate_points


@OBJECTIVES.register("dense")
class Dense(nn.Module):
    """Contrastive loss between features of points, interpolated in the decoder's map at their exact position.

    Points are in the intersection of a sample's views. If the strategy does not relate points itself, the
    relation of the crops is gated: P = P_crop x [same point, or within `tolerance_mm` in one frame], and
    points nearer than `ignore_mm` in one frame are ignored. Other points of attracting crops have M = 1 in
    one frame. A strategy that relates points has its own `num_points`, `tolerance_mm` and `ignore_mm`, and
    these fields have no effect.

    num_points    points per sample
    tolerance_mm  points of attracting crops that share a frame attract up to this distance
    ignore_mm     points that share a frame and do not attract are ignored below this distance
    norm          of the head: points of one view differ enough for `layer`, which is compatible with
                  `train.grad_cache`

    Other fields as in `simclr`.
    Source: vox2vec (Goncharov et al., MICCAI 2023), DenseCL (Wang et al., CVPR 2021).
    """

    uses: ClassVar[frozenset[str]] = frozenset({"positive", "negative", "budget"})
    decodes: ClassVar[bool] = True

    def __init__(
        self,
        network: Network,
        *,
        num_points: PositiveInt = 32,
        tolerance_mm: NonNegative = 0.0,
        ignore_mm: NonNegative = 5.0,
        temperature: Positive = 0.1,
        denominator: Denominator = "all",
        decoupled: bool = False,
        norm: HeadNorm = "layer",
        hidden_dim: PositiveInt = 128,
        out_dim: PositiveInt = 64,
        num_layers: Annotated[int, Field(ge=1, le=8)] = 2,
    ):
        super().__init__()
        denominator_kind(denominator, decoupled, "dense")  # refuses two at once
        channels = decoded_channels(network)
        self.num_points, self.tolerance_mm, self.ignore_mm = num_points, tolerance_mm, ignore_mm
        self.dim, self.temperature, self.denominator, self.decoupled = (
            out_dim,
            temperature,
            denominator,
            decoupled,
        )
        self.projector = Projector(channels, hidden_dim, out_dim, num_layers, norm)

    def embed(self, network: Network, batch: PairBatch) -> Embedded:
        """One unit vector per point and global view."""
        return embed_points(self.projector, network(batch.main.voxels).decoded, batch)

    def loss(self, embedded: Embedded, relating: Relating) -> Loss:
        """Compare each point with the points of the global batch."""
        return contrast(embedded["online"], relating, self.temperature, self.denominator, self.decoupled)

    def gate(self, relate: Relate) -> Relate:
        """The relation of points from a strategy that relates their crops."""

        def relate_gated(rows: Keys, cols: Keys, similarity: Float[Tensor, "N M"] | None) -> Relation:
            if rows.are_views:
                return relate(rows, cols, similarity)  # whole views, in an objective that compares both
            crops = relate(crop_keys(rows), crop_keys(cols), similarity)
            # Two points of one view are in the same crop, which a strategy does not relate to itself.
            same_crop = (rows.sample[:, None] == cols.sample) & (rows.view[:, None] == cols.view)
            points = relate_points(rows, cols, self.tolerance_mm, self.ignore_mm)
            positive = points.positive * torch.where(same_crop, 1.0, crops.positive)
            # Different points of attracting crops are negatives, in one frame: across frames, it is not known
            # which points correspond. Their places differ, whatever part of them two crops share.
            in_frame = rows.frame[:, None] == cols.frame
            negative = torch.where(same_crop | (in_frame & (crops.positive > 0)), 1.0, crops.negative)
            negative = (1 - positive) * points.negative * negative
            if crops.budget is None:
                return Relation(positive, negative)
            # Corresponding points have the budget of their crops.
            return Relation(positive, negative, crops.budget.masked_fill(points.positive == 0, torch.nan))

        return relate_gated


def decoded_channels(network: Network) -> int:
    """The channels of the decoder's map. ConfigError if the network has no decoder."""
    if network.decoder is None:
        raise ConfigError(
            problem="the network has no decoder to read points from",
            remedy="choose an encoder with feature maps",
        )
    return network.decoder.out_channels


def embed_points(
    projector: nn.Module, decoded: Float[Tensor, "N C D H W"] | None, batch: PairBatch
) -> Embedded:
    """The embeddings of points from the decoder's map ``[N, C, D, H, W]``."""
    if decoded is None or batch.points is None:
        raise ValueError("an objective of points needs a decoder and a batch with points")
    features = point_features(decoded, batch.main, batch.points)
    z = projector(rearrange(features, "view point channel -> (view point) channel"))
    return {"online": Embeddings(z, point_keys(batch.main, batch.points))}


def crop_keys(points: Keys) -> Keys:
    """The keys of the points' views."""
    position_mm = torch.full_like(points.position_mm, torch.nan)
    return replace(points, point=torch.full_like(points.point, -1), position_mm=position_mm).marked(True)


def sample_rows(group: ViewGroup) -> Int[Tensor, " N"]:
    """``Int[N]``: the row of a batch's points for each view (samples are sorted and contiguous)."""
    sample = group.keys.sample
    return F.pad((sample[1:] != sample[:-1]).cumsum(0), (1, 0))[: len(sample)]  # without reading their number


def point_keys(group: ViewGroup, points: Points) -> Keys:
    """The keys of all points in all views, ``[N * P]``; invalid points have a position of NaN."""
    rows, count = sample_rows(group), points.valid.shape[1]
    keys = group.keys.map(lambda column: column.repeat_interleave(count, dim=0))
    position = torch.where(points.valid[..., None], points.key_mm, torch.nan)[rows].flatten(0, 1)
    point = torch.arange(count, device=rows.device).repeat(len(rows))
    found = replace(keys, point=point, position_mm=position, body=points.body_mm[rows].flatten(0, 1))
    found = found.marked(count == 0)
    if points.region is None:
        return found
    return replace(found, metadata={**keys.metadata, REGION: points.region[rows].flatten(0, 1)})


def point_features(
    decoded: Float[Tensor, "N C D H W"], group: ViewGroup, points: Points
) -> Float[Tensor, "N P C"]:
    """Features at the points' physical positions: ``[N, C, D, H, W]`` -> ``[N, P, C]``, trilinear."""
    position = points.position_mm[sample_rows(group)]
    inverse = torch.linalg.inv_ex(group.affine).inverse  # without reading whether it exists
    voxel = torch.einsum("nij,npj->npi", inverse[:, :3, :3], position) + inverse[:, None, :3, 3]
    shape = to_device(torch.tensor(group.voxels.shape[2:], dtype=voxel.dtype), voxel.device)
    # A voxel's centre is at its index, so the view spans [-0.5, size - 0.5] for any stride of the map.
    decoded = decoded.to(torch.promote_types(decoded.dtype, torch.float32))
    grid = ((2 * voxel + 1) / shape - 1).flip(-1).to(decoded.dtype)
    grid = grid[:, :, None, None]
    sampled = F.grid_sample(decoded, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return rearrange(sampled, "view channel point 1 1 -> view point channel")

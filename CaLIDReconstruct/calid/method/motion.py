"""Motion between neighboring slices: each is moved half of the way to the other, where the slice between lies.

Ten millimeters apart, walls lie several pixels beside each other, and what is made of two such slices as they are is a
double image. Not in the paper, whose networks have to find the correspondence themselves.

Shapes: images are (N, 1, H, W) in [-1, 1], fields (N, 2, H, W) in pixels: rows, then columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from calid.method.guidance import at_pixels, blended
from calid.method.networks import frame_by_frame, zero_unet

GRID = 2  # pixels of a cell of the grid on which fields are computed; between its nodes they are linear
SECOND_SHARE = 0.5  # of its own fields that the second pass of `refined_fields` moves by
MEAN_PASSES = 2  # of the network in `mean_fields`: there and in a mirror
REFINED_PASSES = 2 * MEAN_PASSES  # in `refined_fields`


@dataclass(frozen=True)
class MotionConfig:
    """Widths of MONAI's BasicUNet.

    Args:
        features: feature maps of the five levels, finest first, then of the last block.
        norm_num_groups: groups of every group norm; divides all features.
    """

    features: tuple[int, ...] = (32, 32, 64, 96, 128, 32)
    norm_num_groups: int = 8


class Fields(NamedTuple):
    """Where a pixel of the slice half-way is found: `before` and `after` at x + field(x)."""

    before: torch.Tensor
    after: torch.Tensor


class Motion(nn.Module):
    """A U-Net that reads both slices and says where each pixel half-way between them comes from.

    It learned from triplets of acquired slices to bring both neighbors onto the slice between. Untrained, nothing
    moves.
    """

    def __init__(self, config: MotionConfig) -> None:
        super().__init__()
        self.config = config
        self.unet = zero_unet(2 * GRID**2, 4, features=config.features, norm_num_groups=config.norm_num_groups)

    def forward(self, before: torch.Tensor, after: torch.Tensor) -> Fields:
        """The fields of images whose rows and columns are multiples of 16, and at least 32."""
        coarse = self.unet(F.pixel_unshuffle(torch.cat([before, after], dim=1), GRID)).float()
        fields = GRID * F.interpolate(coarse, scale_factor=GRID, mode="bilinear", align_corners=False)
        return Fields(*fields.chunk(2, dim=1))


def warped(images: torch.Tensor, field: torch.Tensor) -> torch.Tensor:
    """images(x + field(x)), bicubic; beyond its edge an image goes on as its nearest pixel."""
    if images.device.type == "mps":  # PyTorch has no bicubic sampling on Apple GPUs
        return warped(images.cpu(), field.cpu()).to(images.device)
    rows, columns = images.shape[-2:]
    with torch.autocast(images.device.type, enabled=False):  # half precision would misplace pixels by a quarter
        theta = torch.eye(2, 3, device=images.device).expand(len(images), 2, 3)
        grid = F.affine_grid(theta, list(images.shape), align_corners=True)
    size = torch.tensor([columns - 1, rows - 1], device=images.device)
    grid = grid + 2 * field.float().flip(1).movedim(1, -1) / size
    return F.grid_sample(images.float(), grid, mode="bicubic", padding_mode="border", align_corners=True)


def mean_fields(motion: Motion, before: torch.Tensor, after: torch.Tensor) -> Fields:
    """The mean of the fields and of those that the motion finds in a mirror with the slices in the other order.

    The problem has no preferred direction, and what a network errs by depends on it: on ACDC 055-060 the mean of the
    moved neighbors gains 0.04 dB, 0.7 % in features and 1.6 % in LPIPS.
    """
    seen, mirrored = motion(before, after), motion(after.flip(-1), before.flip(-1))
    there, back = (x.flip(-1) * x.new_tensor([1.0, -1.0]).reshape(1, 2, 1, 1) for x in mirrored)
    return Fields((seen.before + back) / 2, (seen.after + there) / 2)


def refined_fields(motion: Motion, before: torch.Tensor, after: torch.Tensor) -> Fields:
    """`mean_fields`, and half of those of what they make of both slices, one after the other.

    Where two places could correspond, the least error lies between them, and the network moves slices by less than they
    have to be. What is left is a smaller problem of the same kind. The whole of the second pass is nearer in features
    and LPIPS, at more error; a third brings nothing, nor does training through both (CaLIDTraining/GATES.md).
    """
    first = mean_fields(motion, before, after)
    rest = mean_fields(motion, *moved_by(first, before, after))
    further = (SECOND_SHARE * field for field in rest)
    return Fields(*(left + warped(field, left) for field, left in zip(first, further, strict=True)))


def moved_by(
    fields: Fields, before: torch.Tensor, after: torch.Tensor, correction: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Both slices moved by fields, and by a correction (N, 6, h, w) if there is one, see `guidance.py`."""
    if correction is None:
        return warped(before, fields.before).clamp(-1, 1), warped(after, fields.after).clamp(-1, 1)
    dense = at_pixels(correction, before.shape[-2:])
    pair = warped(before, fields.before + dense[:, :2]), warped(after, fields.after + dense[:, 2:4])
    first, last = blended(*pair, dense)
    return first.clamp(-1, 1), last.clamp(-1, 1)


def halfway(
    motion: Motion, before: torch.Tensor, after: torch.Tensor, *, refined: bool = True
) -> tuple[torch.Tensor, torch.Tensor]:
    """Both slices at the place half-way between them; of (N, 1, frames, H, W), every frame by itself.

    Args:
        motion: the network.
        before, after: images.
        refined: whether to take `refined_fields`, at `REFINED_PASSES` times the cost, or the network's as they are.
    """

    def moved(pair: torch.Tensor) -> torch.Tensor:
        before, after = pair.split(1, dim=1)
        fields = refined_fields(motion, before, after) if refined else motion(before, after)
        return torch.cat(moved_by(fields, before, after), dim=1)

    before, after = frame_by_frame(moved, torch.cat([before, after], dim=1), dims=2).split(1, dim=1)
    return before, after

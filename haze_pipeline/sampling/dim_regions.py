"""
Dim regions beside bright structures.

The network sees a plane in units of its brightest structures. In these units, a structure that is 16 times as dim is
hardly larger than the errors of the network, and is lost. Therefore, dim regions are restored again from a copy of the
plane in which everything brighter is cut off at a ceiling. The copy is normalised by itself, so that the network sees
the dim structures with the contrast that the bright ones had. Ceilings fall by factors of four down to the noise.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from scipy import ndimage
from torch.nn.functional import avg_pool2d, interpolate, max_pool2d

from haze_pipeline.utils.arrays import allocate
from haze_pipeline.utils.bad_pixels import fill_masked
from haze_pipeline.utils.noise_level import noise_deviation


CEILING_RATIO = 4  # between one ceiling and the next. The network itself keeps structures of a quarter of the range.
NUM_CEILINGS = 4  # at most
MIN_CEILING = 8  # standard deviations of the noise above the background
MIN_SIGNAL = 8  # standard deviations of the mean of a block; a region of dimmer blocks shows nothing but noise
MIN_FRACTION = 0.02  # of a plane; a copy for a smaller region is not worth a network call
# The result of a copy is used where all pixels nearby stay below half of its ceiling, and not at all where one exceeds
# 0.7 of it.
FULL_WEIGHT, NO_WEIGHT = 0.5, 0.7
BLOCK = 4  # px, side of the blocks in which brightness is compared
REACH = 5  # blocks around a pixel that must be dim
DISC = np.hypot(*np.mgrid[-REACH : REACH + 1, -REACH : REACH + 1]) <= REACH + 0.5


@dataclass
class DimRegions:
    """
    Copies of planes with the bright structures cut off, and the regions where their results are used.

    Args:
        sources (`list[int]`): Number of the plane of every copy. Of one plane, the highest ceiling comes first.
        ceilings (`list[float]`): Largest intensity in every copy, in the units of the planes.
        weights (`list[torch.Tensor]`): Weight of the result of every copy, 0 to 1, `[h, w]`, one value for each block.
    """

    sources: list[int] = field(default_factory=list)
    ceilings: list[float] = field(default_factory=list)
    weights: list[torch.Tensor] = field(default_factory=list)

    def followed_by_copies(self, planes: torch.Tensor) -> torch.Tensor:
        """Planes `[N, 1, H, W]` and, after them, their copies: `[N + V, 1, H, W]`."""
        if not self.sources:
            return planes
        number = len(planes)
        together = allocate(number + len(self.sources), *planes.shape[1:])
        together[:number] = planes
        for copy, source, ceiling in zip(together[number:], self.sources, self.ceilings, strict=True):
            torch.clamp(planes[source], max=ceiling, out=copy)
        return together

    def merge(self, results: torch.Tensor, have_offset: bool = True) -> torch.Tensor:
        """
        Blend results `[..., N + V, 1, H, W]` of planes and copies, in common units, to results `[..., N, 1, H, W]`.
        The results are overwritten, and those of the copies are not kept in memory.

        The background of the brightest structures is the least exact. If results have an offset, unlike standard
        deviations, what was restored before is shifted so that it agrees with the copy where both meet.
        """
        if not self.sources:
            return results
        number = results.shape[-4] - len(self.sources)
        for index, (source, weight) in enumerate(zip(self.sources, self.weights, strict=True), start=number):
            weight = interpolate(weight[None, None], size=results.shape[-2:], mode="bilinear")[0]  # [1,H,W]
            before, copy = results[..., source, :, :, :], results[..., index, :, :, :]
            border = weight * (1 - weight)
            if have_offset and border.any():
                before += ((copy - before) * border).sum(dim=(-3, -2, -1), keepdim=True) / border.sum()
            before.lerp_(copy, weight)
        return allocate(*results.shape[:-4], number, *results.shape[-3:]).copy_(results[..., :number, :, :, :])


def find_dim_regions(planes: torch.Tensor) -> DimRegions:
    """
    Find the regions of planes `[N, 1, H, W]` that are dim beside others. NaN marks pixels without a measurement.
    Regions do not depend on gain and offset of the camera.
    """
    found = DimRegions()
    for source, plane in enumerate(planes[:, 0].numpy()):
        filled, valid = fill_masked(plane)
        noise = noise_deviation(filled, valid)
        if noise == 0:  # most pixels are equal, so that the noise is unknown
            continue
        image = torch.from_numpy(filled)[None]
        blocks = avg_pool2d(image, BLOCK, ceil_mode=True, count_include_pad=False)[0].numpy()
        # The largest pixel of a block decides where it is dim, since the mean hides a bright point.
        peaks = max_pool2d(image, BLOCK, ceil_mode=True)[0].numpy()
        background = float(np.quantile(blocks, 0.01))
        contrast = float(blocks.max()) - background
        nearby = ndimage.maximum_filter(peaks, footprint=DISC, mode="reflect")
        nearby = ndimage.gaussian_filter(nearby, 0.25 * REACH) - background
        for step in range(1, NUM_CEILINGS + 1):
            ceiling = contrast / CEILING_RATIO**step  # above the background
            weight = np.clip((NO_WEIGHT * ceiling - nearby) / ((NO_WEIGHT - FULL_WEIGHT) * ceiling), 0, 1)
            region = weight > 0
            if region.mean() < MIN_FRACTION:
                break
            # The weight fades in with what stands out from the noise, so that a movie does not change abruptly.
            brightest = float(blocks[region].max()) - background
            weight *= np.clip(ceiling / (MIN_CEILING * noise) - 1, 0, 1)
            weight *= np.clip(brightest / (MIN_SIGNAL * noise / BLOCK) - 1, 0, 1)
            if not weight.any():
                break
            found.sources.append(source)
            found.ceilings.append(background + ceiling)
            found.weights.append(torch.from_numpy(weight).float())
    return found

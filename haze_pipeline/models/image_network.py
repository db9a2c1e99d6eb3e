"""What the networks that map one hazy image to one clear image, without a state and a time, have in common."""

import torch


class ImageNetwork:
    r"""
    Network for restoration in one step, see [`HazeRegressionPipeline`]. A subclass is also a `ModelMixin` and a
    `ConfigMixin` of diffusers. It registers `num_features`, the number of channels at full resolution, from which the
    memory of a call is estimated, and `num_channels` if its images have colours.
    """

    # The sides of an image must be multiples of this many pixels.
    scale_factor = 1

    # Whether layers average over the whole image. The prediction of a pixel then depends on the size of the image, and
    # tiles agree less well. Fields are therefore not divided if they fit in memory.
    pools_image = False

    def forward(self, hazy: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """
        Restore hazy images `[B, 1, h, w]`. The last image of the result is the restored one, `[B, 1, h, w]`. The
        images before it, of earlier stages or coarser scales, are trained along with it.
        """
        raise NotImplementedError(f"{type(self).__name__} must define `forward`.")

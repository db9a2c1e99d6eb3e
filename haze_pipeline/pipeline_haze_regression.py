"""Networks that predict the clear image in one step, without a flow: baselines of HazeMatching, and EID."""

import numpy as np
import torch
from diffusers import UNet2DModel

from haze_pipeline.models.image_network import ImageNetwork
from haze_pipeline.sampling.ensemble import Ensemble

from .image_processing import Normalization
from .pipeline_output import RestorationOutput
from .pipeline_restoration import RestorationPipeline
from .pipeline_storage import PipelineStorageMixin


class HazeRegressionPipeline(PipelineStorageMixin, RestorationPipeline):
    r"""
    Restoration by one call of a network, without noise. It gives neither samples nor an uncertainty. The network is
    trained on pairs by mean squared error, optionally followed by adversarial training (`train_regression.py`), or
    without pairs (`train_eid.py`). With the network of [`HazeMatchingPipeline`], always with a state of zeros at
    t = 0, the comparison shows what the flow contributes. The other networks are the baselines of the paper.

    The attention of [`RCAN`], [`MPRNet`] and [`Restormer`] averages over the image. A field is therefore restored as a
    whole if it fits in memory, and tiles agree less well than with the other networks.

    Args:
        unet ([`UNet2DModel`] or [`ImageNetwork`]):
            A U-Net with the input channels (zeros, hazy) and one output channel, each times `pixel_packing`²; or one
            of [`RCAN`], [`MPRNet`], [`MIMOUNet`], [`RRDBNet`], [`ResidualUNet`] and [`Restormer`] in
            `haze_pipeline.models`, which map one hazy image to one clear image. A [`ResidualUNet`] of three channels
            restores colour images, and needs the normalization `"fixed"`.
        normalization (`str`, defaults to `"image"`): See [`HazeImageProcessor`], as for the next four.
        input_mean (`float`, *optional*): Mean of hazy training images.
        input_std (`float`, *optional*): Standard deviation of hazy training images.
        target_mean (`float`, defaults to `0.0`): Mean of clear training images.
        target_std (`float`, defaults to `1.0`): Standard deviation of clear training images.
        pixel_packing (`int`, defaults to `1`):
            Side of the squares of pixels that a U-Net receives as the channels of one pixel.
        training_patch_size (`int`, *optional*): Side of the training patches, pixels.
        training_pixel_size (`dict`, *optional*): `{"min": …, "max": …}` of the pixel sizes in training, µm.
    """

    stores_code = False

    def __init__(
        self,
        unet: UNet2DModel | ImageNetwork,
        normalization: str = "image",
        input_mean: float | None = None,
        input_std: float | None = None,
        target_mean: float = 0.0,
        target_std: float = 1.0,
        pixel_packing: int = 1,
        training_patch_size: int | None = None,
        training_pixel_size: dict | None = None,
    ):
        super().__init__()
        # There is no scheduler, so that `HazeMatchingPipeline.from_pretrained` refuses the folder.
        self.register_modules(unet=unet)
        self.register_to_config(
            normalization=normalization,
            input_mean=input_mean,
            input_std=input_std,
            target_mean=target_mean,
            target_std=target_std,
            pixel_packing=pixel_packing,
            training_patch_size=training_patch_size,
            training_pixel_size=training_pixel_size,
        )
        self.takes_state = not isinstance(unet, ImageNetwork)
        self.num_channels = unet.config.get("num_channels", 1)
        if self.num_channels > 1 and normalization != "fixed":
            raise ValueError(
                f'`normalization` must be "fixed" for a network of colour images, got {normalization!r}: statistics '
                "of every plane would change the colours."
            )
        self.prepare_network(unet, num_states=2 if self.takes_state else 1)

    @torch.no_grad()
    def __call__(
        self,
        image: np.ndarray | torch.Tensor,
        batch_size: int | None = None,
        tile_size: int | None = None,
        tile_overlap: int | None = None,
        output_type: str = "np",
        strength: float = 1.0,
        normalization: Normalization | None = None,
    ) -> RestorationOutput:
        """
        Dehaze an image.

        Args:
            image (`np.ndarray` or `torch.Tensor` of shape `[..., H, W]`):
                Hazy micrograph, see [`HazeMatchingPipeline`]; colour images `[..., 3, H, W]` for a network of colours.
            batch_size (`int`, *optional*): Fields or tiles per network call.
            tile_size (`int`, *optional*): Largest side of the tiles.
            tile_overlap (`int`, *optional*): Pixels shared by neighbouring tiles.
            output_type (`str`, defaults to `"np"`): `"np"` for NumPy arrays, `"pt"` for tensors.
            strength (`float`, defaults to `1.0`): Fraction of what was taken for haze that is removed.
            normalization ([`Normalization`], *optional*): Maps between counts and network units, see [`normalize`].

        Returns:
            [`RestorationOutput`] with the `prediction` `[..., H, W]`.

        Raises:
            `ValueError`: If an argument is out of range, or the image is infinite, empty or less than 2-D, or has
                other channels than the network.
        """
        planes = self.image_processor.preprocess(image, allow_masked=True)  # [N,1,H,W]
        shape = tuple(np.shape(image))
        self.check_tiles(batch_size, tile_size, tile_overlap, output_type)
        self.check_strength(strength)
        if self.num_channels > 1 and (len(shape) < 3 or shape[-3] != self.num_channels):
            raise ValueError(
                f"`image` must have the shape [..., {self.num_channels}, H, W] for this network of colour images, got "
                f"{shape}."
            )
        masked = planes.isnan() if planes.isnan().any() else None  # [N,1,H,W]
        hot_pixels = self.image_processor.replace_hot_pixels(planes)
        hazy, normalization, dim_regions = self.normalize(planes, normalization)  # [N+V,1,H,W]
        images = hazy.reshape(-1, self.num_channels, *hazy.shape[-2:])  # [M,C,H,W], M · C = N + V
        sampler = self.prepare_sampler(hazy.shape[-2:], tile_size, tile_overlap, batch_size)
        ensemble = Ensemble(images.shape, 1, keep_spread=False, keep_samples=False)

        def predict(network, zeros, hazy, on_step):
            if not self.takes_state:
                return network(hazy, None)  # [B,C,h,w]
            return network(torch.cat([zeros, hazy], dim=1), torch.zeros((), device=hazy.device))  # [B,1,h,w]

        for first in range(0, len(images), sampler.fields_per_batch):
            batch = images[first : first + sampler.fields_per_batch]  # [B,C,H,W]
            clear = sampler.sample(predict, torch.zeros_like(batch), batch, [()] * len(batch))  # [B,C,H,W]
            for number, result in enumerate(clear, first):
                ensemble.add(number, 0, result)
        self.maybe_free_model_hooks()
        prediction = self.postprocess(
            ensemble.mean.reshape(hazy.shape), shape, output_type, hazy, normalization, dim_regions, masked, strength
        )
        return RestorationOutput(prediction=prediction, hot_pixels=hot_pixels)

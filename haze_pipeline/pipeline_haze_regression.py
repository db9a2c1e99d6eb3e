"""The baseline of HazeMatching: the same U-Net trained to predict the clear image in one step, without a flow."""

import numpy as np
import torch
from diffusers import DiffusionPipeline, UNet2DModel

from .pipeline_haze_matching import HazeMatchingPipeline
from .pipeline_output import HazeMatchingOutput
from .scheduling_flow_match_ode import FlowMatchODEScheduler


class HazeRegressionPipeline(DiffusionPipeline):
    r"""
    Dehazing by regression: the network of [`HazeMatchingPipeline`], trained by mean squared error with a state of zeros and at
    t = 0 throughout. It has no noise, no samples and no uncertainty, and shows what the flow adds to its network.

    Args:
        unet ([`UNet2DModel`]): Channels (zeros, hazy) in and one out.
        normalization (`str`, defaults to `"image"`): As the following ones in [`HazeMatchingPipeline`].
        input_mean (`float`, *optional*): Mean of hazy training images.
        input_std (`float`, *optional*): Standard deviation of hazy training images.
        target_mean (`float`, defaults to `0.0`): Mean of clear training images.
        target_std (`float`, defaults to `1.0`): Standard deviation of clear training images.
        training_patch_size (`int`, *optional*): Side of the training patches, pixels.
        training_pixel_size (`dict`, *optional*): `{"min": …, "max": …}` of the training images, µm.
    """

    model_cpu_offload_seq = "unet"

    def __init__(
        self,
        unet: UNet2DModel,
        normalization: str = "image",
        input_mean: float | None = None,
        input_std: float | None = None,
        target_mean: float = 0.0,
        target_std: float = 1.0,
        training_patch_size: int | None = None,
        training_pixel_size: dict | None = None,
    ):
        super().__init__()
        # It has no scheduler of its own, so that `HazeMatchingPipeline.from_pretrained` refuses its folder.
        self.register_modules(unet=unet)
        self.register_to_config(
            normalization=normalization,
            input_mean=input_mean,
            input_std=input_std,
            target_mean=target_mean,
            target_std=target_std,
            training_patch_size=training_patch_size,
            training_pixel_size=training_pixel_size,
        )

    @torch.no_grad()
    def __call__(
        self,
        image: np.ndarray | torch.Tensor,
        batch_size: int | None = None,
        tile_size: int | None = None,
        tile_overlap: int | None = None,
        output_type: str = "np",
    ) -> HazeMatchingOutput:
        """
        Dehaze an image.

        Args:
            image (`np.ndarray` or `torch.Tensor` of shape `[..., H, W]`): Hazy micrograph, see [`HazeMatchingPipeline`].
            batch_size (`int`, *optional*): Fields or tiles per network call.
            tile_size (`int`, *optional*): Largest side of the tiles.
            tile_overlap (`int`, *optional*): Pixels shared by neighbouring tiles.
            output_type (`str`, defaults to `"np"`): `"np"` for NumPy arrays, `"pt"` for tensors.

        Returns:
            [`HazeMatchingOutput`] with the `prediction` `[..., H, W]`.

        Raises:
            `ValueError`: If an argument is out of range or the image is not finite, empty or less than 2-D.
        """
        config = {name: value for name, value in self.config.items() if not name.startswith("_") and name != "unet"}
        pipeline = HazeMatchingPipeline(self.unet, FlowMatchODEScheduler(), **config)
        pipeline.set_progress_bar_config(disable=True)
        # One Euler step from zeros adds nothing but what the network says.
        return pipeline(
            image, num_inference_steps=1, latents=torch.zeros(tuple(image.shape)), batch_size=batch_size,
            tile_size=tile_size, tile_overlap=tile_overlap, output_type=output_type,
        )  # fmt: skip

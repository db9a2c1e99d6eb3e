"""The faint lattice that networks on packed pixels leave in their results. This module needs torch alone."""

import torch
from torch.nn.functional import conv1d, conv2d, pad, pixel_shuffle


def remove_lattice(planes: torch.Tensor, smoothing: int = 8) -> torch.Tensor:
    """
    Remove the lattice of squares of 2 × 2 pixels from results. TorchScript can compile this function.

    Three patterns of alternating sign have this period: columns, rows and a checkerboard. The amplitude of each is
    measured around every square, and the pattern is subtracted. The filters of the measurement suppress smooth
    structures, and images of a microscope hold next to nothing at these frequencies.

    Args:
        planes (`torch.Tensor` of shape `[B, 1, H, W]`): Results. Planes of less than 4 pixels a side stay as they are.
        smoothing (`int`, defaults to `8`): Side, in squares, of the box filter that smooths the amplitude three times.
    """
    height, width = planes.shape[-2], planes.shape[-1]
    if min(height, width) < 4:
        return planes
    smooth, alternating = torch.tensor([0.25, 0.5, 0.25]), torch.tensor([-0.25, 0.5, -0.25])
    vertical = torch.stack([smooth, alternating, alternating])[:, None, :, None]
    horizontal = torch.stack([alternating, smooth, alternating])[:, None, None, :]
    filters = (vertical * horizontal).to(planes)  # [3,1,3,3] for columns, rows and the checkerboard
    # Squares at the border would take a gradient for a pattern: they get the amplitude of their neighbours.
    amplitudes = conv2d(planes[..., 1:, 1:], filters, stride=2)
    amplitudes = pad(amplitudes, (1, width % 2, 1, height % 2), mode="replicate")  # [B,3,h,w]
    box = torch.full((1, 1, smoothing), 1 / smoothing)
    thrice = conv1d(conv1d(box, box, padding=smoothing - 1), box, padding=smoothing - 1).to(planes)  # [1,1,K]
    before, after = 3 * (smoothing // 2), 3 * ((smoothing - 1) // 2)
    amplitudes = pad(amplitudes, (before, after, before, after), mode="replicate")
    amplitudes = conv2d(amplitudes, thrice.reshape(1, 1, -1, 1).repeat(3, 1, 1, 1), groups=3)
    amplitudes = conv2d(amplitudes, thrice.reshape(1, 1, 1, -1).repeat(3, 1, 1, 1), groups=3)
    # Signs of the three in the pixels of a square: upper left and right, lower left and right.
    signs = torch.tensor([[1.0, 1.0, 1.0], [-1.0, 1.0, -1.0], [1.0, -1.0, -1.0], [-1.0, -1.0, 1.0]]).to(planes)
    lattice = pixel_shuffle(conv2d(amplitudes, signs[:, :, None, None]), 2)  # [B,1,H,W], or one more row or column
    return planes - lattice[..., :height, :width]

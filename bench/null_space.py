"""
Draw the argument of equivariance: what linear networks recover of signals of which the same places are always hidden.

    python bench/null_space.py

Writes `docs/images/null_space.png`. `tests/test_equivariance.py` has the numbers.
"""

from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import gaussian_filter1d

from haze_pipeline.equivariance import draw_transform, eid_losses
from haze_pipeline.models.haze_operator import HazeOperator


HERE = Path(__file__).parent


class Mask(HazeOperator, torch.nn.Module):
    """Hides a part of a signal `[B, 1, 1, 64]`. What it hides is its null space."""

    def forward(self, clear, haze):
        places = torch.arange(clear.shape[-1])
        return clear * ((places < 24) | (places >= 36))


def draw_null_space():
    """Train two linear networks on masked signals alone, and draw what they recover of a new one."""
    import matplotlib.pyplot as plt

    def signals(seed, number):
        values = gaussian_filter1d(np.random.default_rng(seed).normal(size=(number, 64)), 4, mode="wrap")
        return torch.from_numpy(values / values.std()).float()[:, None, None]

    operator, test, recovered = Mask(), signals(2, 8)[:1], {}
    hazy = operator(signals(1, 512), None)
    for weight in (0.0, 1.0):
        torch.manual_seed(0)
        network, rng = torch.nn.Linear(64, 64), np.random.default_rng(0)
        optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
        for _ in range(1500):
            batch = hazy[rng.integers(0, len(hazy), 64)]
            consistency, equivariance = eid_losses(network, operator, batch, draw_transform("shift", rng), rng)
            optimizer.zero_grad()
            (consistency + weight * equivariance).backward()
            optimizer.step()
        recovered[weight] = network(operator(test, None)).detach().flatten()
    figure, axes = plt.subplots(figsize=(7, 2.6), layout="constrained")
    axes.axvspan(24, 35, color="0.9", label="hidden by the operator")
    axes.plot(test.flatten(), color="black", label="signal")
    axes.plot(recovered[0.0], color="tab:red", linestyle=":", label="consistency alone")
    axes.plot(recovered[1.0], color="tab:blue", linestyle="--", label="consistency and equivariance")
    axes.set(xlabel="place", ylabel="value", xlim=(0, 63))
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(HERE.parent / "docs" / "images" / "null_space.png", dpi=120)


if __name__ == "__main__":
    draw_null_space()

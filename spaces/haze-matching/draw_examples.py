"""
Draw the thumbnails of the examples, and the result that the page shows when it opens, with the checkpoint in the
package. Run it again when an example or the checkpoint changes: `python spaces/haze-matching/draw_examples.py`.
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from haze_pipeline import HazeMatchingPipeline
from haze_pipeline.io.micrograph_files import read_micrograph
from haze_pipeline.presets import Preset, with_preset
from haze_pipeline.visualization import VisualizationMixin


THUMBNAIL = 128  # px
CENTRE = 192  # px; side of the part in the result, so that its captions can be read
EXAMPLES = Path(__file__).parent / "examples"


def draw_thumbnail(source: Path):
    """Draw the first channel of an example."""
    data = read_micrograph(source).data
    picture = VisualizationMixin.visualize_intensity(data[0] if data.ndim > 2 else data)
    picture = picture.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    picture.save(source.with_name(source.name.replace(".ome.tif", ".png")), optimize=True)


def draw_opening(source: Path):
    """Draw the centre of input, result and standard deviation of an example with the preset balanced and seed 0."""
    micrograph = read_micrograph(source)
    pipe, steps, members = with_preset(HazeMatchingPipeline.from_default(), Preset.balanced)
    generator = torch.Generator().manual_seed(0)
    output = pipe(micrograph.data, steps, members, generator=generator, output_uncertainty=True)
    top, left = ((side - CENTRE) // 2 for side in micrograph.data.shape)
    planes = (micrograph.data, output.prediction, output.uncertainty)
    shown = (plane[top : top + CENTRE, left : left + CENTRE] for plane in planes)
    picture = pipe.image_processor.visualize_side_by_side(*shown, micrograph.pixel_size_um)
    # 128 greys and 128 colours of the map, so that the page loads quickly.
    ramp = np.arange(128.0)[None]
    colors = [VisualizationMixin.visualize_intensity(ramp, 0, 127, each).convert("RGB") for each in ("gray", "fire")]
    palette = Image.new("P", (1, 1))
    palette.putpalette(np.concatenate(colors, axis=1).ravel().tolist())
    picture.quantize(palette=palette, dither=Image.Dither.NONE).save(EXAMPLES / "opening.png", optimize=True)


if __name__ == "__main__":
    for example in sorted(EXAMPLES.glob("*.ome.tif")):
        draw_thumbnail(example)
    draw_opening(EXAMPLES / "filaments.ome.tif")

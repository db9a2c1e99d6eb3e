"""Display of results in notebooks: pictures that state the intensities shown as black and as white."""

import base64
import html
import io

import numpy as np

from .visualization import VisualizationMixin


LARGEST = 384  # px, longer side of a picture


class NotebookMixin:
    """Display of a [`RestorationOutput`] in a notebook. The output does not know its input, which is not shown."""

    def _repr_html_(self) -> str:
        is_list = isinstance(self.prediction, list)
        first = self.prediction[0] if is_list else self.prediction
        shape = tuple(np.shape(first))
        middle = tuple(length // 2 for length in shape[:-2])
        number = int(np.ravel_multi_index(middle, shape[:-2])) if middle else 0

        def plane(values) -> np.ndarray:
            return np.asarray((values[0] if is_list else values)[middle])

        figures = [picture("prediction", plane(self.prediction))]
        if self.uncertainty is not None:
            figures.append(picture("standard deviation", plane(self.uncertainty), "fire"))
        if self.samples is not None:
            samples = self.samples[0] if is_list else self.samples
            figures.append(picture(f"sample 1 of {len(samples)}", np.asarray(samples[(0, *middle)])))
        facts = [f"{' × '.join(map(str, shape))} pixels"]
        if is_list:
            facts.insert(0, f"image 1 of {len(self.prediction)}")
        if middle:
            facts.append(f"plane {number} is shown")
        if self.hot_pixels:
            facts.append(f"{self.hot_pixels} hot pixel(s) replaced")
        return f"<div>{''.join(figures)}<p>{html.escape(', '.join(facts))}</p></div>"


def picture(name: str, plane: np.ndarray, colormap: str = "gray") -> str:
    """A plane `[H, W]` as an HTML figure. Its caption states the values shown as black and as white."""
    low, high = (float(np.nanpercentile(plane, percentile)) for percentile in (0.5, 99.8))
    image = VisualizationMixin.visualize_intensity(plane, low, high, colormap)
    image.thumbnail((LARGEST, LARGEST))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    source = base64.b64encode(buffer.getvalue()).decode()
    caption = f"{html.escape(name)}: black {low:.4g}, white {high:.4g}"
    style = "display:inline-block; margin:0 8px 8px 0"
    return (
        f'<figure style="{style}"><img alt="{html.escape(name)}" src="data:image/png;base64,{source}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )

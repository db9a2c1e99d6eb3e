"""Display of planes as 8-bit pictures."""

import numpy as np
from PIL import Image, ImageDraw, ImageFont


class VisualizationMixin:
    """Display methods of an image processor. `self.normalization` says whether input and result share their unit."""

    @staticmethod
    def visualize_intensity(
        image: np.ndarray, low: float | None = None, high: float | None = None, colormap: str = "gray"
    ) -> Image.Image:
        """
        Show one plane as an 8-bit picture. Pictures are for the eye only; measure in the output arrays.

        Args:
            image (`np.ndarray` of shape `[H, W]`): Intensities or standard deviations.
            low (`float`, *optional*): Value shown as black; the 0.5th percentile by default.
            high (`float`, *optional*): Value shown at full brightness; the 99.8th percentile by default.
            colormap (`str`, defaults to `"gray"`): `"gray"`, or `"fire"` for maps that are not intensities.
        """
        if image.ndim != 2:
            raise ValueError(f"`image` must be one plane [H, W], got shape {image.shape}.")
        low = float(np.nanpercentile(image, 0.5)) if low is None else low
        high = float(np.nanpercentile(image, 99.8)) if high is None else high
        scaled = np.nan_to_num(np.clip((image.astype(np.float64) - low) / max(high - low, 1e-12), 0, 1))
        if colormap == "gray":
            return Image.fromarray((255 * scaled).round().astype(np.uint8))
        if colormap != "fire":
            raise ValueError(f'`colormap` must be "gray" or "fire", got {colormap!r}.')
        # Black, red, yellow, white: lightness increases throughout, so that print keeps the order of values.
        channels = [np.clip(3 * scaled - shift, 0, 1) for shift in (0, 1, 2)]
        return Image.fromarray((255 * np.stack(channels, axis=-1)).round().astype(np.uint8))

    def visualize_together(
        self, images: dict[str, np.ndarray], same_contrast: bool = True
    ) -> tuple[list[Image.Image], str]:
        """
        Show planes for comparison, magnified to a longer side of at least 512 px. Each picture is black at the 0.5th
        percentile of its plane.

        Args:
            images (`dict`): Planes `[H, W]` by name.
            same_contrast (`bool`, defaults to `True`):
                Show the same number of counts between black and white in all pictures: that from the 0.5th to the
                99.8th percentile of the first plane. If false, or if predictions are not in the units of the input,
                every picture has its own contrast.

        Returns:
            The pictures, and a sentence that states the values shown as black and as white.
        """
        pictures, captions, span = [], [], None
        for name, image in images.items():
            low, high = (float(np.nanpercentile(image, percentile)) for percentile in (0.5, 99.8))
            if span is None or not same_contrast or self.normalization != "image":
                span = high - low
            picture = self.visualize_intensity(image, low, low + span)
            if max(picture.size) < 512:  # integer magnification, so that pixels stay sharp
                zoom = -(-512 // max(picture.size))
                picture = picture.resize((zoom * picture.width, zoom * picture.height), Image.Resampling.NEAREST)
            pictures.append(picture)
            black, white = (np.format_float_positional(v, 3, fractional=False, trim="-") for v in (low, low + span))
            captions.append(f"{name} {black} to {white}")
        return pictures, f"Counts from black to white: {'; '.join(captions)}."

    @classmethod
    def visualize_side_by_side(
        cls,
        hazy: np.ndarray,
        prediction: np.ndarray,
        uncertainty: np.ndarray | None = None,
        pixel_size: float | None = None,
        unit: str = "µm",
    ) -> Image.Image:
        """
        Show input, result and, if given, uncertainty of one plane in a row. Every panel states the values shown as
        black and as white. A scale bar is drawn if the pixel size is known.

        Args:
            hazy (`np.ndarray` of shape `[H, W]`): The input.
            prediction (`np.ndarray` of shape `[H, W]`): The result.
            uncertainty (`np.ndarray` of shape `[H, W]`, *optional*): Standard deviation of the result.
            pixel_size (`float`, *optional*): Width of a pixel in `unit`.
            unit (`str`, defaults to `"µm"`): Unit of `pixel_size`.
        """
        panels = [("hazy input", hazy, "gray"), ("prediction", prediction, "gray")]
        if uncertainty is not None:
            panels.append(("standard deviation", uncertainty, "fire"))

        # Panels are 384 to 1024 px on the longer side. Integer magnification keeps the pixels of small images sharp.
        longest = max(hazy.shape)
        zoom = max(1, -(-384 // longest)) if longest < 384 else min(1.0, 1024 / longest)
        height, width = (max(1, round(side * zoom)) for side in hazy.shape)
        panel_width = max(width, 320)  # narrow images still need room for their caption
        gap, caption = 8, 48
        canvas = Image.new("RGB", ((panel_width + gap) * len(panels) - gap, height + caption), "white")
        draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(16)
        for index, (name, plane, colormap) in enumerate(panels):
            low, high = float(np.nanpercentile(plane, 0.5)), float(np.nanpercentile(plane, 99.8))
            picture = cls.visualize_intensity(plane, low, high, colormap).convert("RGB")
            method = Image.Resampling.NEAREST if zoom >= 1 else Image.Resampling.BOX
            left = index * (panel_width + gap)
            canvas.paste(picture.resize((width, height), method), (left, caption))
            draw.text((left + 2, 4), name, fill="black", font=font)
            draw.text((left + 2, 24), f"black {low:.4g}, white {high:.4g}", fill="dimgray", font=font)

        if pixel_size is not None and width >= 64:
            length = round_length(0.25 * width / zoom * pixel_size)
            right, bottom = width - 12, caption + height - 12
            left = right - round(length / pixel_size * zoom)
            draw.rectangle((left, bottom - 4, right, bottom), fill="white", outline="black")
            label = f"{length:g} {unit.replace('µ', 'u')}"  # Pillow's font has no µ
            text_left = (left + right) / 2 - draw.textlength(label, font=font) / 2
            text_left = min(text_left, right - draw.textlength(label, font=font))
            draw.text((text_left, bottom - 26), label, fill="white", font=font, stroke_width=1, stroke_fill="black")
        return canvas


def round_length(available: float) -> float:
    """Length of a scale bar: the longest of …, 1, 2, 5, 10, … that fits."""
    decade = 10.0 ** np.floor(np.log10(available))
    return next(step * decade for step in (5, 2, 1) if step * decade <= available)

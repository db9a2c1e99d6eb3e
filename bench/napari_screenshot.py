"""
Draw docs/images/napari.png: the plugin in a real viewer, after it has dehazed its sample image.

    xvfb-run --auto-servernum --server-args "-screen 0 1600x1000x24" python bench/napari_screenshot.py

Needs the extra `test-napari`. A screen, or the virtual one of Xvfb, must have 1500 × 850 pixels.
"""

import io
import time
from pathlib import Path

import napari
from npe2 import PluginManager, PluginManifest
from PIL import Image
from qtpy.QtWidgets import QApplication


ROOT = Path(__file__).parents[1]


def process_events(seconds: float, until=lambda: False):
    """Let the viewer work."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and not until():
        QApplication.processEvents()
        time.sleep(0.02)


viewer = napari.Viewer(title="napari")
if "haze-pipeline" not in PluginManager.instance():
    PluginManager.instance().register(PluginManifest.from_file(ROOT / "haze_pipeline" / "napari" / "napari.yaml"))
viewer.open_sample("haze-pipeline", "membranes")
viewer.layers.remove("in focus (truth)")
_, widget = viewer.window.add_plugin_dock_widget("haze-pipeline", "Dehaze")
widget.preset.value = "balanced"
widget.uncertainty.value = widget.unexplained.value = True
widget.run()
process_events(1800, until=lambda: not widget.cancel.enabled)

viewer.layers.move(viewer.layers.index("hazy dehazed"), 1)  # beside the input
viewer.layers.selection = {viewer.layers["hazy dehazed"]}
viewer.grid.enabled = True
viewer.scale_bar.visible = True
for layer in viewer.layers:
    layer.visible = True
    layer.name_overlay.visible = layer.colorbar.visible = True
viewer.window.resize(1500, 850)
process_events(2)
viewer.reset_view()
process_events(2)
picture = Image.fromarray(viewer.screenshot(canvas_only=False, flash=False)).convert("RGB")
picture = picture.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
buffer = io.BytesIO()
picture.save(buffer, "PNG", optimize=True)
(ROOT / "docs" / "images" / "napari.png").write_bytes(buffer.getvalue())
print(f"docs/images/napari.png: {len(buffer.getvalue()) >> 10} KiB; {widget.verdict.value}")
viewer.close()

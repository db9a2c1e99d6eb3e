"""The napari plugin: the widget "Dehaze", readers and writers, and a sample image. Listed in `napari.yaml`."""

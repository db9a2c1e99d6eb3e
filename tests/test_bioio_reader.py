"""
Images read by `bioio`. Its plugins for CZI, ND2 and LIF need files that only the manufacturers' programs write. The
plugin for OME-TIFF gives the same object. These tests therefore show that such an object is read correctly, not that a
manufacturer's file opens.
"""

import numpy as np
import pytest
import tifffile
from format_files import write_ome_tiff

from haze_pipeline.io.bioio_reader import open_with_bioio
from haze_pipeline.io.micrograph_files import MicrographError, read_micrograph


def counts(*shape):
    return np.random.default_rng(0).integers(0, 4000, shape, dtype=np.uint16)


def test_a_stack_with_its_sizes(tmp_path):
    path, data = tmp_path / "a.ome.tif", counts(2, 3, 20, 30)
    metadata = {"axes": "ZCYX", "PhysicalSizeX": 0.1, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": 0.2}
    metadata |= {"PhysicalSizeYUnit": "µm", "PhysicalSizeZ": 0.5, "PhysicalSizeZUnit": "µm"}
    tifffile.imwrite(path, data, ome=True, metadata={**metadata, "Channel": {"Name": ["a", "b", "c"]}})
    with open_with_bioio(path) as micrograph:
        assert micrograph.axes == "CZYX" and micrograph.data.dtype == np.uint16
        assert (micrograph.pixel_size, micrograph.z_step, micrograph.channel_names) == (
            (0.2, 0.1),
            0.5,
            ["a", "b", "c"],
        )
        np.testing.assert_array_equal(micrograph.data[1, 0], data[0, 1])
        np.testing.assert_array_equal(micrograph.data, np.moveaxis(data, 1, 0))


def test_scenes_are_chosen(tmp_path):
    path = tmp_path / "a.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as writer:
        writer.write(counts(16, 16))
        writer.write(counts(20, 24))
    with pytest.raises(MicrographError, match="--series"), open_with_bioio(path):
        pass
    with open_with_bioio(path, 1) as micrograph:
        np.testing.assert_array_equal(micrograph.data, counts(20, 24))
    with pytest.raises(MicrographError, match="no image 2"), open_with_bioio(path, 2):
        pass


def test_a_missing_plugin_is_named(tmp_path):
    (tmp_path / "a.czi").write_bytes(b"ZISRAWFILE")
    with pytest.raises(MicrographError, match="plugin"):
        read_micrograph(tmp_path / "a.czi")


def test_contents_that_the_reader_cannot_read_are_not_blamed_on_a_plugin(tmp_path):
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, counts(2, 16, 16), ome=True, compression="zlib", metadata={"axes": "ZYX"})
    with tifffile.TiffFile(path) as tif:
        offset = tif.pages[1].dataoffsets[0]
    content = bytearray(path.read_bytes())
    content[offset : offset + 40] = bytes(40)
    path.write_bytes(content)
    with open_with_bioio(path) as micrograph, pytest.raises(MicrographError, match="its reader in bioio") as refused:
        micrograph.data[1]
    assert "plugin" not in str(refused.value)


def test_what_the_reader_gives_as_ome_is_kept(tmp_path):
    data = counts(2, 2, 2, 20, 30)
    write_ome_tiff(tmp_path / "a.ome.tif", data)
    with open_with_bioio(tmp_path / "a.ome.tif") as micrograph:
        acquisition = micrograph.acquisition
    assert (acquisition.immersion, acquisition.channels[1].color) == ("Oil", "00FF00")
    assert (acquisition.planes[3].position.x, acquisition.planes[3].exposure_time) == (1200, 0.05)

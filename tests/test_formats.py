"""What is read of every format, and what results keep of it."""

import warnings

import numpy as np
import pytest
from format_files import FORMATS, facts_read

from haze_pipeline.io.micrograph_files import list_micrographs, micrograph_writer, open_micrograph, read_micrograph


def written(form, folder):
    """The path of a file of a format, and its data."""
    data = form.data()
    form.write(folder / form.file, data)
    return folder / form.file, data


def rewrite(source, target):
    """What a run makes of a file when nothing is changed."""
    with open_micrograph(source) as micrograph:
        shape, dtype = micrograph.data.shape, micrograph.data.dtype
        with micrograph_writer(target, micrograph, shape, dtype, target) as writer:
            for index in np.ndindex(shape[:-2]):
                writer.write(index, micrograph.data[index])


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
def test_everything_that_a_file_states_is_read(tmp_path, form):
    path, data = written(form, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        micrograph = read_micrograph(path)
    assert micrograph.axes == form.axes
    np.testing.assert_array_equal(micrograph.data, data, strict=True)
    facts = facts_read(micrograph)
    assert {letter for letter in form.sizes + form.states if not facts[letter]} == set()


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
@pytest.mark.parametrize("target", ["b.ome.tif", "b.ome.zarr"])
def test_everything_that_a_file_states_is_kept(tmp_path, form, target):
    if target.endswith("zarr") and form.axes not in ("YX", "ZYX", "TCZYX"):
        pytest.skip("OME-Zarr has its axes in one order")
    path, data = written(form, tmp_path)
    rewrite(path, tmp_path / target)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = read_micrograph(tmp_path / target)
    np.testing.assert_array_equal(result.data, data, strict=True)
    facts = facts_read(result)
    assert {letter for letter in form.sizes + form.states if not facts[letter]} - {"D"} == set()
    if "D" in form.states:  # ranges are those of what was written
        low, high = result.acquisition.channels[0].display_range
        assert data.min() <= low < 0.01 * data.max() and 0.99 * data.max() < high <= data.max()


def test_all_formats_are_found_in_a_folder(tmp_path):
    for form in FORMATS:
        (tmp_path / form.name).mkdir()
        written(form, tmp_path / form.name)
    names = {path.as_posix() for path in list_micrographs(tmp_path)}
    assert names == {f"{form.name}/{form.file}" for form in FORMATS}

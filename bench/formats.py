"""
Check what is read of every format and kept in results, on files with known contents that `tests/format_files.py`
writes.

    python bench/formats.py

Writes `bench/formats.json`.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np

from haze_pipeline.io.micrograph_files import micrograph_writer, open_micrograph, read_micrograph


HERE = Path(__file__).parent
sys.path.append(str(HERE.parent / "tests"))

from format_files import FORMATS, Format, facts_read  # noqa: E402


def check(form: Format, folder: Path) -> dict:
    """
    Whether the pixels of a file are read and written exactly, and which of the facts that it states are read, and are
    kept in an OME-TIFF that is written plane by plane, as results are.
    """
    source, target, data = folder / form.file, folder / "result.ome.tif", form.data()
    form.write(source, data)
    with open_micrograph(source) as micrograph:
        shape, dtype = micrograph.data.shape, micrograph.data.dtype
        is_read = micrograph.axes == form.axes and np.array_equal(micrograph.data, data) and dtype == data.dtype
        read = facts_read(micrograph)
        with micrograph_writer(target, micrograph, shape, dtype, target) as writer:
            for index in np.ndindex(shape[:-2]):
                writer.write(index, micrograph.data[index])
    result = read_micrograph(target)
    kept = facts_read(result)
    if result.acquisition.channels and result.acquisition.channels[0].display_range:
        kept["D"] = True  # it is measured on the result, as it is of other intensities
    stated = form.sizes + form.states
    return {
        "pixels": bool(is_read and result.axes == form.axes and np.array_equal(result.data, data)),
        "stated": stated,
        "read": "".join(letter for letter in stated if read[letter]),
        "kept": "".join(letter for letter in stated if kept[letter]),
    }


def main():
    results = {}
    for form in FORMATS:
        with tempfile.TemporaryDirectory() as folder:
            results[form.name] = check(form, Path(folder))
        print(form.name, results[form.name], flush=True)
    (HERE / "formats.json").write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()

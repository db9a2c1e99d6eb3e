"""Display in notebooks, and the tutorial, which runs from its first cell to its last."""

import numpy as np
import pytest
from conftest import ROOT

from haze_pipeline import HazeMatchingPipeline
from haze_pipeline.notebook_display import picture
from haze_pipeline.reliability.assessment import assess


def counts(*shape):
    return np.random.default_rng(0).poisson(100, shape).astype(np.uint16)


def test_outputs_state_what_is_black_and_white(model):
    pipe = HazeMatchingPipeline.from_pretrained(model, low_cpu_mem_usage=False)
    out = pipe(counts(3, 32, 40), 2, 2, output_uncertainty=True, output_samples=True)
    shown = out._repr_html_()
    assert shown.count("<img") == 3 and shown.count(": black ") == 3 and "sample 1 of 2" in shown
    assert "3 × 32 × 40 pixels, plane 1 is shown" in shown
    low, high = np.percentile(out.prediction[1], (0.5, 99.8))
    assert f"prediction: black {low:.4g}, white {high:.4g}" in shown
    listed = pipe([counts(32, 40), counts(16, 16)], 1)._repr_html_()
    assert "image 1 of 2, 32 × 40 pixels" in listed and listed.count("<img") == 1


def test_an_assessment_lists_its_warnings(model):
    pipe = HazeMatchingPipeline.from_pretrained(model, low_cpu_mem_usage=False)
    image = counts(64, 64)
    assessment = assess(pipe, image, pipe(image, 1))
    assessment.warnings, assessment.not_checked = ["Gains differ: a < b."], []
    shown = assessment._repr_html_()
    assert "<li>Gains differ: a &lt; b.</li>" in shown and "unexplained: black" in shown


def test_pictures_of_large_planes_are_small():
    shown = picture("large", counts(800, 1200))
    assert len(shown) < 400_000 and "white" in shown


def test_the_tutorial_runs():
    nbclient = pytest.importorskip("nbclient", reason="needs the extra `test`")
    import nbformat

    notebook = nbformat.read(ROOT / "docs" / "tutorial.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "clear all outputs before you commit it"
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(ROOT)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("text/html" in output.get("data", {}) for output in outputs) == 4
    assert not any(output["output_type"] == "error" for output in outputs)

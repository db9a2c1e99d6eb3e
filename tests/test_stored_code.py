from pathlib import Path

import pytest

import haze_pipeline
from haze_pipeline.utils.hub import PIPELINE
from haze_pipeline.utils.stored_code import join_modules


ROOT = Path(haze_pipeline.__file__).parent


def test_stored_code_holds_what_restoring_needs_and_no_more():
    code = join_modules(ROOT, PIPELINE[0])
    modules = [line[2:-3] for line in code.splitlines() if line.startswith("# ") and line.endswith(".py")]
    assert modules[-1] == PIPELINE[0] and len(modules) <= 18
    assert len(code.splitlines()) < 1800
    for name in (
        "huggingface_hub",
        "requests",
        "PIL.ImageDraw",
        "haze_pipeline",
        "VisualizationMixin",
        "StorageMixin",
    ):
        assert f"import {name}" not in code and f"from {name}" not in code
    compile(code, "stored", "exec")


def test_names_of_joined_modules_must_not_collide(tmp_path):
    (tmp_path / "one.py").write_text('"""One."""\n\nSIZE = 1\n')
    (tmp_path / "two.py").write_text("from .one import SIZE\n\n\ndef size():\n    return SIZE\n")
    namespace = {}
    exec(join_modules(tmp_path, "two"), namespace)
    assert namespace["size"]() == 1
    (tmp_path / "two.py").write_text("from .one import other\n\nSIZE = 2\n")
    with pytest.raises(ValueError, match="SIZE is one as well as two: rename one"):
        join_modules(tmp_path, "two")

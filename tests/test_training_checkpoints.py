"""What a kill leaves in the folder of a training; whole trainings are killed in test_train_haze_matching.py."""

import pytest

from haze_pipeline.training_checkpoints import start_output


def test_what_a_kill_leaves_half_written_is_cleared_away(tmp_path):
    for name in ("checkpoint-3", "incomplete-checkpoint-6", "incomplete-deleted-best"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    (tmp_path / "incomplete-training_log.jsonl").touch()
    (tmp_path / "training_log.jsonl").touch()
    start_output(tmp_path, resume=True)
    # The best of before is back: the kill fell between its going and the coming of the next.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best", "checkpoint-3", "training_log.jsonl"]
    with pytest.raises(FileExistsError, match="holds checkpoints of another training"):
        start_output(tmp_path, resume=False)

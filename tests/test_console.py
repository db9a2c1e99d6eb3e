"""How programs end after an error."""

import pytest
import torch

from haze_pipeline.utils.console import errors_in_one_line


class DamagedImages(torch.utils.data.Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        raise ValueError("a.tif is damaged:\n  copy it again.\nhint: check the disk")


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_of_the_user_becomes_one_sentence(capsys, workers):
    with pytest.raises(SystemExit) as ended, errors_in_one_line():
        next(iter(torch.utils.data.DataLoader(DamagedImages(), num_workers=workers)))
    assert ended.value.code == 1
    assert capsys.readouterr().err == "Error: a.tif is damaged: copy it again. hint: check the disk\n"


def test_an_interrupt_ends_with_its_exit_code(capsys):
    with pytest.raises(SystemExit) as ended, errors_in_one_line():
        raise KeyboardInterrupt
    assert ended.value.code == 130 and capsys.readouterr().err == "\nInterrupted.\n"


@pytest.mark.parametrize("error", [RuntimeError, KeyError, TypeError])
def test_an_error_of_the_program_keeps_its_traceback(capsys, error):
    with pytest.raises(error), errors_in_one_line():
        raise error("unexpected")
    assert capsys.readouterr().err == ""

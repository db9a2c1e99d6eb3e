"""Loading of training data, and the defaults of its command-line arguments; the scripts' tests cover the rest."""

import argparse
import inspect
import shutil

import datasets
import numpy as np
import pytest
from conftest import ROOT, write_pairs

from haze_pipeline.data.dataset_card import make_dataset_card
from haze_pipeline.data.hub_datasets import build_dataset, pair_row, save_dataset
from haze_pipeline.data.pinhole_series import join_series
from haze_pipeline.data.training_data import load_training_data


def test_a_rewritten_dataset_is_not_read_from_the_cache(tmp_path):
    # `datasets` caches folders by name, card and size, which are the same for both datasets.
    folder = tmp_path / "pairs"
    for value in (1, 2):
        plane = np.full((8, 8), value, np.uint16)
        rows = build_dataset(iter([pair_row(plane, plane, "specimen", "source")]), tmp_path / f"{value}.arrow")
        splits = datasets.DatasetDict({"train": rows})
        shutil.rmtree(folder, ignore_errors=True)
        save_dataset(splits, make_dataset_card(splits, "pairs", "", "", ""), folder)
        data = load_training_data(dataset_name=str(folder))
        assert len(data.pairs) == 1 and (data.pairs[0].hazy == value).all()


@pytest.mark.parametrize("sources", [{}, {"simulate": True, "dataset_name": "lab/pairs"}])
def test_training_data_have_exactly_one_source(sources):
    with pytest.raises(ValueError, match="need exactly one source"):
        load_training_data(**sources)


def test_validation_pairs_are_limited_but_pinhole_series_stay_whole(run, tmp_path):
    simulated = ("--num-images", 2, "--size", 48, "--pinholes", "1,4,open")
    assert run("simulate", tmp_path / "series", *simulated)[0] == 0
    for limit, number in ((1, 3), (3, 3), (4, 6), (64, 6)):
        folders = {"train_data_dir": tmp_path / "series", "validation_data_dir": tmp_path / "series"}
        data = load_training_data(**folders, max_validation_pairs=limit, resolution=32)
        assert len(join_series(data.validation)) * 3 == len(data.validation) == number
    pairs = write_pairs(tmp_path, 3, (48, 48))
    data = load_training_data(train_data_dir=pairs, validation_data_dir=pairs, max_validation_pairs=2, resolution=32)
    assert len(data.validation) == 2


def test_flags_and_keywords_have_the_same_defaults(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "training")
    from data_arguments import add_data_arguments

    parser = argparse.ArgumentParser()
    add_data_arguments(parser)
    flags = vars(parser.parse_args([]))
    flags["num_workers"] = flags.pop("dataloader_num_workers")
    keywords = inspect.signature(load_training_data).parameters
    assert flags == {name: keyword.default for name, keyword in keywords.items()}

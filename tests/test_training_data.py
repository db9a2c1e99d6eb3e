"""Data arguments of the training scripts. Most of them are tested with the scripts."""

import argparse
import shutil

import datasets
import numpy as np

from haze_pipeline.data.dataset_card import make_dataset_card
from haze_pipeline.data.hub_datasets import build_dataset, pair_row, save_dataset
from haze_pipeline.data.training_data import add_data_arguments, load_training_data


def test_a_rewritten_dataset_is_not_read_from_the_cache(tmp_path):
    # `datasets` caches folders by name, card and size, which are the same for both datasets.
    folder = tmp_path / "pairs"
    parser = argparse.ArgumentParser()
    add_data_arguments(parser)
    for value in (1, 2):
        plane = np.full((8, 8), value, np.uint16)
        rows = build_dataset(iter([pair_row(plane, plane, "specimen", "source")]), tmp_path / f"{value}.arrow")
        splits = datasets.DatasetDict({"train": rows})
        shutil.rmtree(folder, ignore_errors=True)
        save_dataset(splits, make_dataset_card(splits, "pairs", "", "", ""), folder)
        data = load_training_data(parser.parse_args(["--dataset_name", str(folder)]))
        assert len(data.pairs) == 1 and (data.pairs[0].hazy == value).all()

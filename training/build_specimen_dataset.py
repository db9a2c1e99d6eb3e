"""
Make the dataset of haze-free specimens on which the checkpoint in the package was trained.

    python training/build_specimen_dataset.py --images_dir ../shared/data --output_dir runs/specimens

`training/specimens.csv` lists the files with split, structure, quality, licence and source. Files of the split `none`
are left out. The result is a folder of Parquet files with a card that attributes every source. `--push_to` also
uploads the dataset to the Hub.
"""

import argparse
import csv
import re
import sys
import tempfile
from pathlib import Path

from huggingface_hub import DatasetCard, DatasetCardData

from haze_pipeline.data.hub_datasets import import_datasets, push_dataset, save_dataset
from haze_pipeline.data.specimen_datasets import build_specimen_dataset, specimen_rows
from haze_pipeline.sharing.model_card import shareable_command
from haze_pipeline.utils.atomic_files import replace_when_complete
from haze_pipeline.utils.console import errors_in_one_line


HERE = Path(__file__).parent


def main():
    parser = argparse.ArgumentParser(description="Make a dataset of haze-free specimens.")
    parser.add_argument("--images_dir", type=Path, required=True, help="Folder that contains the files of the table.")
    parser.add_argument("--table", type=Path, default=HERE / "specimens.csv", help="CSV table of the files.")
    parser.add_argument("--output_dir", type=Path, required=True, help="Folder to create.")
    parser.add_argument("--push_to", help="Dataset repository of the Hub to upload to as well, such as lab/specimens.")
    args = parser.parse_args()
    if args.output_dir.exists():
        parser.error(f"{args.output_dir} exists: choose another --output_dir.")
    with args.table.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] != "none"]
    missing = [row["file"] for row in rows if not (args.images_dir / row["file"]).is_file()]
    if missing:
        parser.error(
            f"{args.images_dir} lacks {len(missing)} files of {args.table}, such as {missing[0]}: add the files or "
            "set their split to none."
        )
    unclear = [row["file"] for row in rows if re.search("own terms|unverified|unclear", row["licence"])]
    if args.push_to and unclear:
        parser.error(
            f"--push_to needs clear licences, but those of {len(unclear)} files, such as {unclear[0]}, are unclear: "
            "clarify them first."
        )
    for row in rows:
        row["quality"] = int(row["quality"])
        for name in ("pixel_size_um", "z_step_um"):
            row[name] = float(row[name]) if row[name] else None

    with tempfile.TemporaryDirectory() as folder, replace_when_complete(args.output_dir) as output:
        splits = {}
        for split in ("train", "validation", "test"):
            chosen = [row for row in rows if row["split"] == split]
            planes = (plane for row in chosen for plane in specimen_rows(args.images_dir / row["file"], row))
            splits[split] = build_specimen_dataset(planes, Path(folder, f"{split}.arrow"))
        splits = import_datasets().DatasetDict(splits)
        data_files = [{"split": name, "path": f"data/{name}-*"} for name in splits]
        card = DatasetCard.from_template(
            DatasetCardData(
                license="other",
                pretty_name=args.output_dir.name,
                task_categories=["image-to-image"],
                tags=["microscopy", "fluorescence", "dehazing"],
                configs=[{"config_name": "default", "data_files": data_files}],
            ),
            template_path=str(HERE / "specimens_card.md.jinja"),
            title=args.push_to or args.output_dir.name,
            command=shareable_command(["python", *sys.argv]),
            splits={
                name: {"files": len(set(split["specimen_id"])), "planes": len(split)} for name, split in splits.items()
            },
            rows=rows,
        )
        save_dataset(splits, card, output)
        if args.push_to:
            print(push_dataset(splits, card, args.push_to))
    print(args.output_dir)


if __name__ == "__main__":
    with errors_in_one_line():
        main()

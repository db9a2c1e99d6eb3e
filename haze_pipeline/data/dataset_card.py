"""Dataset card of a dataset of pairs. All its numbers are counted in the data."""

from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from .hub_datasets import DTYPES, import_datasets


if TYPE_CHECKING:
    import datasets
    from huggingface_hub import DatasetCard

# Stored beside this file, not in model_cards/, so that the installed package contains it.
TEMPLATE = Path(__file__).with_name("dataset_card.md.jinja")


def make_dataset_card(
    splits: "datasets.DatasetDict",
    title: str,
    origin: str,
    split_rule: str,
    command: str,
    license_id: str | None = None,
) -> "DatasetCard":
    """
    Write the card of a dataset of pairs.

    Args:
        splits (`datasets.DatasetDict`): The data.
        title (`str`): Name of the repository or folder; the card's example loads the dataset by this name.
        origin (`str`): Sentences on where the pairs come from.
        split_rule (`str`): Sentences on how the splits were made.
        command (`str`): Command line or code that made the dataset.
        license_id (`str`, *optional*): Licence identifier of the Hub, such as `"cc-by-4.0"`.
    """
    from huggingface_hub import DatasetCard, DatasetCardData

    card_data = DatasetCardData(
        license=license_id,
        pretty_name=title,
        task_categories=["image-to-image"],
        tags=["microscopy", "fluorescence", "dehazing"],
        configs=[
            {
                "config_name": "default",
                "data_files": [{"split": name, "path": f"data/{name}-*"} for name in splits],
            }
        ],
    )
    facts = {name: _count(split) for name, split in splits.items()}
    return DatasetCard.from_template(
        card_data,
        template_path=str(TEMPLATE),
        title=title,
        origin=origin,
        split_rule=split_rule,
        command=command,
        splits=facts,
    )


def _count(split: "datasets.Dataset") -> dict:
    """Count the facts about one split that the card lists."""
    undecoded = import_datasets().Image(decode=False)
    found = {"hazy": set(), "clear": set(), "heights": set(), "widths": set()}
    for row in split.cast_column("hazy", undecoded).cast_column("clear", undecoded):
        for name in ("hazy", "clear"):
            with Image.open(BytesIO(row[name]["bytes"])) as image:  # reads the header only
                found[name].add(DTYPES[image.mode])
                found["heights"].add(image.height)
                found["widths"].add(image.width)
    columns = {name: split[name][:] for name in ("specimen_id", "level", "pixel_size_um")}
    pixel_sizes = {value for value in columns["pixel_size_um"] if value is not None}
    levels = {value for value in columns["level"] if value is not None}
    return {
        "pairs": len(split),
        "specimens": len(set(columns["specimen_id"])),
        "hazy_types": sorted(found["hazy"]),
        "clear_types": sorted(found["clear"]),
        "heights": sorted(found["heights"]),
        "widths": sorted(found["widths"]),
        "pixel_sizes": sorted(pixel_sizes),
        "pixel_size_unknown": columns["pixel_size_um"].count(None),
        "levels": sorted(levels),
        "widefield": columns["level"].count(None),
    }

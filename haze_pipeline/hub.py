"""Pipeline folders, laid out as repositories of the Hub."""

from pathlib import Path


def stored_variant(folder: str | Path) -> str | None:
    """`"fp16"` if a pipeline folder holds its weights in half precision only, as `from_pretrained(variant=…)` must be told."""
    weights = list(Path(folder, "unet").glob("*.safetensors"))
    return "fp16" if weights and all(".fp16." in path.name for path in weights) else None

"""Publishing of a pipeline on the Hub: everything that others need to load, judge and cite it, in one commit."""

import copy
import json
import shutil
from collections.abc import Sequence
from importlib.metadata import distribution
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from huggingface_hub import HfApi
from huggingface_hub.utils import validate_repo_id

from haze_pipeline.io.micrograph_files import read_micrograph
from haze_pipeline.pipeline_haze_matching import HazeMatchingPipeline
from haze_pipeline.presets import Preset, with_preset
from haze_pipeline.utils.console import require
from haze_pipeline.utils.hub import create_repository
from haze_pipeline.utils.provenance import weights_digest
from haze_pipeline.utils.stored_code import add_blocks

from .evaluation_results import find_model, write_eval_results
from .model_card import FACTS, make_model_card, read_facts


# Files of an earlier push. Those that are not uploaded again are deleted in the same commit.
OURS = [
    "*.py", "unet/*", "scheduler/*", "examples/*", *(f"{name}.json" for name in FACTS), "calibration.png",
    ".eval_results/haze-pipeline*",
]  # fmt: skip

GENERATED = "<!-- Written by haze-pipeline"


def push_pipeline(
    pipe: HazeMatchingPipeline,
    repo_id: str,
    folder: str | Path | None = None,
    evaluation: str | Path | None = None,
    examples: Sequence[str | Path] = (),
    license_id: str | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    commit_message: str | None = None,
    create_pr: bool = False,
) -> str:
    """
    Upload a pipeline to the Hub in one commit, with a card.

    Args:
        pipe ([`HazeMatchingPipeline`]): The pipeline, in float32.
        repo_id (`str`): `"organisation/name"`. The repository is created if it does not exist.
        folder (`str` or `Path`, *optional*):
            Pipeline folder with the files that training, conversion, evaluation and calibration wrote. A LICENSE there
            is uploaded too. A README.md there replaces the card if it was written or changed by hand.
        evaluation (`str` or `Path`, *optional*):
            Folder that `haze-pipeline evaluate` wrote. If it compares several models, the card has the results of the
            one with the weights of `pipe`.
        examples (sequence of `str` or `Path`, *optional*): Hazy TIFFs to upload. The card shows their results.
        license_id (`str`, *optional*): Licence of the weights as the Hub spells it, such as `"apache-2.0"`.
        private (`bool`, *optional*): Make a new repository private. By default, the organisation's setting applies.
        token (`str` or `bool`, *optional*): Access token. By default, that of `hf auth login`.
        commit_message (`str`, *optional*): Message of the commit. By default, it says what is uploaded.
        create_pr (`bool`, defaults to `False`): Open a pull request instead of committing to the main branch.

    Returns:
        `str`: URL of the commit.

    Raises:
        `ValueError`: If the pipeline is in half precision, or an example or the evaluation cannot be used.
        `huggingface_hub.errors.HfHubHTTPError`: If the Hub refuses the request.
    """
    validate_repo_id(repo_id)
    with TemporaryDirectory() as staged:
        write_repository(pipe, Path(staged), repo_id, folder, evaluation, examples, license_id)
        name = create_repository(repo_id, "model", private, token).repo_id
        commit = HfApi(token=token).upload_folder(
            repo_id=name,
            folder_path=staged,
            delete_patterns=OURS,
            create_pr=create_pr,
            commit_message=commit_message or "Upload a HazeMatching pipeline",
        )
    return commit.commit_url


def write_repository(
    pipe: HazeMatchingPipeline,
    staged: Path,
    repo_id: str,
    folder: str | Path | None = None,
    evaluation: str | Path | None = None,
    examples: Sequence[str | Path] = (),
    license_id: str | None = None,
):
    """Write the files that [`push_pipeline`] uploads to the folder `staged`. For the arguments, see there."""
    require("hub", "jinja2")
    if pipe.unet.dtype != torch.float32:
        raise ValueError(
            f"The pipeline is in {pipe.unet.dtype}, which has lost digits of the weights: load it without `dtype`."
        )

    # 1. Weights in both precisions, code, and configurations without local paths of the user.
    pipe.save_pretrained(staged)
    copy.deepcopy(pipe.unet).half().save_pretrained(staged / "unet", variant="fp16")
    for file in (staged / "model_index.json", staged / "unet" / "config.json"):
        config = json.loads(file.read_text(encoding="utf-8"))
        config.pop("_name_or_path", None)
        file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    if (staged / "modular_config.json").exists():
        add_blocks(staged, repo_id)

    # 2. The licences and the facts about the pipeline.
    licence = distribution("haze-pipeline").read_text("licenses/LICENSE")  # always read as UTF-8
    (staged / "LICENSE").write_text(licence, encoding="utf-8")
    sources = [] if folder is None else [Path(folder, name) for name in ("LICENSE", "calibration.png")]
    sources += [] if folder is None else [Path(folder, f"{name}.json") for name in FACTS]
    for source in sources:
        if source.is_file():
            shutil.copyfile(source, staged / source.name)
    if evaluation is not None:
        if not Path(evaluation, "evaluation.json").is_file():
            raise ValueError(f"{evaluation} is not a report of `haze-pipeline evaluate`: it has no evaluation.json.")
        shutil.copyfile(Path(evaluation, "evaluation.json"), staged / "evaluation.json")
    facts = read_facts(staged)
    if "evaluation" in facts:
        write_eval_results(staged, facts["evaluation"], find_model(facts["evaluation"], weights_digest(pipe)))

    # 3. Examples, dehazed as by `haze-pipeline dehaze`.
    (staged / "examples").mkdir()
    facts["figures"] = [_dehaze_example(pipe, Path(example), staged) for example in examples]

    # 4. The card, unless the folder has one that was written or changed by hand.
    card = None if folder is None else Path(folder, "README.md")
    if card is not None and card.is_file() and GENERATED not in card.read_text(encoding="utf-8"):
        shutil.copyfile(card, staged / "README.md")
    else:
        license_id = (
            license_id or facts.get("training", {}).get("license") or ("unknown" if "conversion" in facts else None)
        )
        make_model_card(pipe, repo_id, facts, license_id).save(staged / "README.md")


def _dehaze_example(pipe: HazeMatchingPipeline, path: Path, staged: Path) -> tuple[str, str]:
    """Copy an example, draw it beside its result, and return the name of the picture and its caption."""
    micrograph = read_micrograph(path)
    planes = micrograph.data.reshape(-1, *micrograph.data.shape[-2:])
    plane = planes[len(planes) // 2]
    name = path.name.split(".")[0]
    if (staged / "examples" / f"{name}.png").exists():
        raise ValueError(f"{path} has the same name as another example: rename one of them.")
    preset = Preset.balanced if pipe.config.calibrated_for else Preset.fast
    prepared, steps, members = with_preset(pipe, preset, **(pipe.config.calibrated_for or {}))
    generator = torch.Generator().manual_seed(0)
    out = prepared(plane, steps, members, generator=generator, output_uncertainty=steps > 1)
    picture = pipe.image_processor.visualize_side_by_side(
        plane,
        out.prediction,
        out.uncertainty,
        pixel_size=micrograph.pixel_size and micrograph.pixel_size[1],
        unit=micrograph.pixel_size_unit,
    )
    picture.save(staged / "examples" / f"{name}.png")
    shutil.copyfile(path, staged / "examples" / path.name)
    kind = f"mean and standard deviation of {members} samples of {steps} steps" if steps > 1 else "posterior mean"
    return f"examples/{name}.png", f"Hazy input and {kind} of examples/{path.name}"

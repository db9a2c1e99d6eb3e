"""Provenance of a result: the weights and the settings of the sampling, to be stored in its file."""

import hashlib

from haze_pipeline.version import __version__


def weights_digest(pipe) -> str:
    """The first 12 hexadecimal digits of the SHA-256 of the weights. They identify a checkpoint."""
    digest = hashlib.sha256()
    for name, tensor in sorted(pipe.unet.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().float().numpy().tobytes())
    return digest.hexdigest()[:12]


def sampling_facts(
    pipe, model: str | None, revision: str, seed: int, num_inference_steps: int, ensemble_size: int
) -> dict:
    """
    Settings with which a pipeline made a result, for the provenance in its file. `revision` is the [`weights_digest`]
    of the pipeline. A pipeline without a scheduler has no solver.
    """
    scheduler = pipe.scheduler.config if "scheduler" in pipe.components else {}
    return {
        "package": f"haze-pipeline {__version__}",
        "model": model or "default checkpoint",
        "revision": revision,
        "seed": seed,
        "num_inference_steps": num_inference_steps,
        "solver": scheduler.get("solver"),
        "shift": scheduler.get("shift"),
        "ensemble_size": ensemble_size,
        "device": pipe.device.type,
        "dtype": str(pipe.unet.dtype).removeprefix("torch."),
    }

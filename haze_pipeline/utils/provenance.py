"""How a result was made, for the files that hold it: with what weights, and how they were sampled."""

import hashlib

from haze_pipeline.version import __version__


def weights_digest(pipe) -> str:
    """First 12 hex digits of the SHA-256 over the weights, which tell one checkpoint from another."""
    digest = hashlib.sha256()
    for name, tensor in sorted(pipe.unet.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().float().numpy().tobytes())
    return digest.hexdigest()[:12]


def sampling_facts(
    pipe, model: str | None, revision: str, seed: int, num_inference_steps: int, ensemble_size: int
) -> dict:
    """How a pipeline made a result, for the provenance in its file; `revision` is its [`weights_digest`]."""
    return {
        "package": f"haze-pipeline {__version__}",
        "model": model or "default checkpoint",
        "revision": revision,
        "seed": seed,
        "num_inference_steps": num_inference_steps,
        "solver": pipe.scheduler.config.solver,
        "shift": pipe.scheduler.config.shift,
        "ensemble_size": ensemble_size,
        "device": pipe.device.type,
        "dtype": str(pipe.unet.dtype).removeprefix("torch."),
    }

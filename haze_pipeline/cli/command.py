"""How a command of `haze-pipeline` shows its help and words its errors."""

import re

import typer
from typer.core import TyperCommand

from haze_pipeline.utils.console import one_line

from .options import OTHER


# Arguments of Python functions whose options have other names, and arguments that no option sets.
OPTIONS = {
    "numerical_aperture": "na",
    "emission_wavelength": "emission",
    "excitation_wavelength": "excitation",
    "refractive_index": "immersion_index",
    "shared_noise": "share_noise",
    "output_uncertainty": "uncertainty",
    "output_samples": "samples",
}
WORDS = {"image": "the image", "stack": "the stack", "target": "the clear image"}


class Command(TyperCommand):
    """
    A command whose errors name its options. Python functions name their arguments: what they call `ensemble_size` is
    `--ensemble-size` on the command line.
    """

    def invoke(self, ctx: typer.Context):
        try:
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort):  # these are RuntimeErrors too
            raise
        except (ValueError, RuntimeError) as error:
            raise ValueError(self.describe_error(error)) from error

    def describe_error(self, error: Exception) -> str:
        """The message of an error in one line, with options in place of the arguments of Python functions."""
        options = {param.name: max(param.opts, key=len) for param in self.params if param.opts[0].startswith("-")}

        def name_option(match: re.Match) -> str:
            name = match[1]
            return options.get(OPTIONS.get(name, name)) or WORDS.get(name, match[0])

        return re.sub(r"`(\w+)`", name_option, one_line(error))

    def get_params(self, ctx: typer.Context) -> list:
        """The parameters, as the help shows them: no type beside switches, and `--help` in the last panel."""
        params = super().get_params(ctx)
        has_panels = any(getattr(param, "rich_help_panel", None) for param in self.params)
        for param in params:
            if getattr(param, "is_flag", False):
                param.metavar = ""
            if "--help" in param.opts and has_panels:
                param.rich_help_panel = OTHER
        return params

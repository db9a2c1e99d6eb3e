"""Errors for visitors: one sentence in a toast."""

import html
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import gradio as gr


@contextmanager
def one_sentence(path: str | None = None) -> Iterator[None]:
    """Show errors of the body in a toast. The message names the file as the user does."""
    try:
        yield
    except (OSError, ValueError, MemoryError, RuntimeError) as error:
        message = " ".join(str(error).split()) or "There is not enough memory: choose a smaller image."
        if path is not None:
            message = message.replace(path, Path(path).name)
        raise gr.Error(html.escape(message, quote=False), print_exception=False) from error

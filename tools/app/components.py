"""Custom components: patch painter, example picker, file download."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from html import escape
from pathlib import Path

import gradio as gr

from multimae.nn.tokens import Size
from multimae.plotting.colours import label_palette
from multimae.specs.modalities import Modality
from tools.app.panels import class_name
from tools.app.strokes import edit_kind

_STATIC = Path(__file__).with_name("static")


@cache
def static(name: str) -> str:
    """Return the text of a file in ``static/``."""
    return (_STATIC / name).read_text(encoding="utf-8")


def painter(modality: Modality, grid: Size) -> gr.HTML:
    """Build the patch painter of one input; value ``{"visible": bits, "edits": {patch: value}}``.

    A function, because Gradio writes a stub file beside every component subclass.

    Args:
        modality: Spec of the input.
        grid: Rows and columns of its patches.
    """
    palette = label_palette(modality.num_classes) if modality.is_labels else ()
    return gr.HTML(
        {"visible": "", "edits": {}},
        html_template=static("painter.html"),
        js_on_load=static("painter.js"),
        apply_default_css=False,
        elem_id=f"painter-{modality.name}",
        label=modality.name,
        name=modality.name,
        rows=grid[0],
        columns=grid[1],
        edit=edit_kind(modality),
        classes=[
            {"name": class_name(modality, i), "colour": "#{:02x}{:02x}{:02x}".format(*colour)}
            for i, colour in enumerate(palette)
        ],
        picture="",
    )


def picker(titles: Sequence[str], uris: Sequence[str]) -> gr.HTML:
    """Build the example thumbnails; value and ``select`` event hold the chosen index."""
    buttons = "".join(
        f'<button type="button" data-index="{i}" aria-pressed="false" title="{escape(title)}">'
        f'<img src="{uri}" alt="{escape(title)}"></button>'
        for i, (title, uri) in enumerate(zip(titles, uris, strict=True))
    )
    return gr.HTML(
        -1,
        html_template=f'<div class="mm-picker">{buttons}</div>',
        js_on_load=static("picker.js"),
        apply_default_css=False,
        elem_id="examples",
    )


def saver() -> gr.HTML:
    """Build the component that downloads a ``{"name", "data", "count"}`` value."""
    return gr.HTML(
        {},
        html_template="",
        js_on_load=static("saver.js"),
        apply_default_css=False,
        elem_id="saver",
    )

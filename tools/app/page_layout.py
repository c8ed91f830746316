"""Layout of the page: controls on the left, one row of pictures per modality on the right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

import gradio as gr

from multimae.images.readers import SUFFIXES
from multimae.specs.modalities import Modality
from tools.app.components import painter, picker, saver
from tools.app.engine import Engine
from tools.app.panels import picture_of_stored
from tools.app.scenes import Scene, can_render
from tools.app.session import MAX_SEED
from tools.app.uploads import MAX_BYTES
from tools.common.data_uri import encode

DEFAULT_FRACTION = 6  # one in six patches is visible, as in pre-training
ALPHAS = (0.1, 10.0)
TITLE = "MultiMAE"


@dataclass
class Parts:
    """Components that the event handlers read and write.

    Attributes:
        scene: The visitor's images.
        painters: By input.
        panels: Pictures by output.
        shares: Sliders by input.
        files: Uploads by input.
        presets: Buttons that show one input alone, by input.
    """

    scene: gr.State
    painters: dict[str, gr.HTML] = field(default_factory=dict)
    panels: dict[str, gr.HTML] = field(default_factory=dict)
    shares: dict[str, gr.Slider] = field(default_factory=dict)
    files: dict[str, gr.File] = field(default_factory=dict)
    presets: dict[str, gr.Button] = field(default_factory=dict)
    examples: gr.HTML = field(init=False)
    fresh: gr.Button | None = None
    sixth: gr.Button = field(init=False)
    num_encoded_tokens: gr.Slider = field(init=False)
    concentration: gr.Slider = field(init=False)
    seed: gr.Number = field(init=False)
    resample: gr.Button = field(init=False)
    download: gr.Button = field(init=False)
    saver: gr.HTML = field(init=False)
    status: gr.HTML = field(init=False)
    alert: gr.HTML = field(init=False)

    @property
    def settings(self) -> list[Any]:
        """Sampling controls in the order of ``Events.settings``."""
        return [self.num_encoded_tokens, self.concentration, *self.shares.values(), self.seed]

    @property
    def shown(self) -> list[Any]:
        """Components that a prediction updates."""
        return [*self.painters.values(), *self.panels.values(), self.status, self.alert]


def build_layout(engine: Engine, examples: Sequence[Scene]) -> Parts:
    """Build all components inside an open ``gr.Blocks``."""
    parts = Parts(gr.State(None))
    gr.HTML(_header(engine), apply_default_css=False, elem_classes="mm-title")
    with gr.Row(elem_classes="mm-page"):
        with gr.Column(scale=0, min_width=310, elem_classes="mm-controls"):
            _controls(parts, engine, examples)
        with gr.Column(scale=1, min_width=320):
            parts.alert = gr.HTML("", apply_default_css=False, elem_id="alert")
            _modality_rows(parts, engine)
            parts.status = gr.HTML("", apply_default_css=False, elem_id="status")
    parts.saver = saver()
    return parts


def alert_html(message: str) -> str:
    """Render an alert that screen readers announce."""
    return f'<div class="mm-alert" role="alert">{escape(message)}</div>' if message else ""


def status_html(text: str) -> str:
    """Render the line below the pictures."""
    return f'<div class="mm-status" role="status">{escape(text)}</div>'


def _header(engine: Engine) -> str:
    names = [m.name for m in engine.inputs]
    listed = " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
    return (
        f"<h1>{TITLE}</h1><p>One transformer sees a few patches of {escape(listed)}, and fills in "
        "all of them. <b>Drag over the patches</b> on the left to reveal or hide them. Press "
        "<b>edit</b> to change a patch, and watch the other modalities react.</p>"
    )


def _heading(text: str) -> None:
    gr.HTML(f'<div class="mm-heading">{escape(text)}</div>', apply_default_css=False)


def _controls(parts: Parts, engine: Engine, examples: Sequence[Scene]) -> None:
    _heading("Image")
    uris = [_thumbnail(scene, engine.inputs) for scene in examples]
    parts.examples = picker([scene.title for scene in examples], uris)
    if can_render(engine.spec):
        parts.fresh = gr.Button("Render a new room", size="sm", elem_id="new-room")
    with gr.Accordion("Your own images", open=False, elem_id="own"):
        for m in engine.inputs:
            parts.files[m.name] = gr.File(
                label=f"{m.name} (up to {MAX_BYTES / 1e6:.0f} MB)",
                file_types=sorted(SUFFIXES),
                height=128,
                elem_id=f"file-{m.name}",
            )
    _heading("Visible patches")
    with gr.Row(elem_classes="mm-presets"):
        parts.sixth = gr.Button("1/6 of all", size="sm", min_width=60, elem_id="preset-sixth")
        for m in engine.inputs:
            parts.presets[m.name] = gr.Button(
                f"only {m.name}", size="sm", min_width=60, elem_id=f"preset-{m.name}"
            )
    parts.num_encoded_tokens = gr.Slider(
        1,
        engine.num_patches,
        engine.num_patches // DEFAULT_FRACTION,
        step=1,
        label="visible patches",
        elem_id="num_encoded_tokens",
    )
    parts.concentration = gr.Slider(
        *ALPHAS,
        1.0,
        step=0.1,
        label="Dirichlet concentration",
        info="low: one modality dominates; high: shares are met",
        elem_id="concentration",
    )
    with gr.Accordion("Shares of the modalities", open=False, elem_id="shares"):
        for m in engine.inputs:
            parts.shares[m.name] = gr.Slider(
                0, 1, 1, step=0.05, label=m.name, elem_id=f"share-{m.name}"
            )
    with gr.Row(equal_height=True, elem_classes="mm-seed"):
        parts.seed = gr.Number(
            0, label="seed", precision=0, minimum=0, maximum=MAX_SEED, min_width=90, elem_id="seed"
        )
        parts.resample = gr.Button("Resample", variant="primary", min_width=90, elem_id="resample")
    parts.download = gr.Button("Download as PNG", size="sm", elem_id="download")


def _modality_rows(parts: Parts, engine: Engine) -> None:
    """Build one row per input; further targets go to a folded section."""
    outputs = {m.name: m for m in engine.outputs}
    for m in engine.inputs:
        with gr.Row(elem_classes="mm-row"):
            parts.painters[m.name] = painter(m, engine.grids[m.name])
            if m.name in outputs:
                parts.panels[m.name] = _panel(outputs.pop(m.name))
    if outputs:
        with gr.Accordion("Further targets: " + ", ".join(outputs), open=False, elem_id="further"):
            for m in outputs.values():
                with gr.Row(elem_classes="mm-row"):
                    gr.HTML(_name(m), apply_default_css=False)
                    parts.panels[m.name] = _panel(m)


def _panel(m: Modality) -> gr.HTML:
    return gr.HTML("", apply_default_css=False, elem_id=f"row-{m.name}")


def _name(m: Modality) -> str:
    note = f"{m.data_name}, every patch standardised" if m.norm_pix else "not an input"
    return (
        f'<div class="mm-head"><b class="mm-name">{escape(m.name)}</b></div>'
        f'<div class="mm-note">{escape(note)}</div>'
    )


def _thumbnail(scene: Scene, inputs: Sequence[Modality]) -> str:
    """Return the scene's first image."""
    m = next(m for m in inputs if m.name in scene.pixels)
    return encode(picture_of_stored(scene.pixels[m.name], m))

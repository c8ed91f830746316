"""Event handlers of the page: component values in, component updates out."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

import gradio as gr

from multimae.specs.errors import UserError
from tools.app.page_layout import DEFAULT_FRACTION, Parts, alert_html, status_html
from tools.app.scenes import MAX_NUMBER, Scene, from_files, render_scene
from tools.app.session import MAX_SEED, PageUpdate, Session, Settings
from tools.app.strokes import Edits, Mask
from tools.common.data_uri import data_uri

Update = dict[Any, Any]
"""New values by component."""


class Events:
    """Connects a page's components to a session."""

    def __init__(self, parts: Parts, session: Session, examples: Sequence[Scene]) -> None:
        """Store the page and its session; :meth:`bind` attaches the events."""
        self.parts, self.session, self.examples = parts, session, examples
        self.inputs = session.engine.inputs

    def bind(self, blocks: gr.Blocks) -> None:
        """Attach every event."""
        p = self.parts
        painters, drawn = list(p.painters.values()), [p.scene, *p.settings]
        scened = [p.scene, *p.files.values(), p.examples, *p.shown]
        quiet: dict[str, Any] = {"show_progress": "hidden", "concurrency_id": "model"}
        private = {**quiet, "api_visibility": "private"}
        blocks.load(self._guard(self.start), p.settings, scened, **private)
        gr.on(
            [painter.input for painter in painters],
            self._guard(self.paint),
            [p.scene, *painters],
            p.shown,
            trigger_mode="always_last",
            api_name="predict",
            **quiet,
        )
        sliders = [p.num_encoded_tokens, p.concentration, *p.shares.values()]
        gr.on(
            [*(slider.input for slider in sliders), p.seed.submit],
            self._guard(self.draw),
            drawn,
            p.shown,
            trigger_mode="always_last",
            api_name="draw",
            **quiet,
        )
        p.resample.click(self._guard(self.resample), drawn, [p.seed, *p.shown], **private)
        p.sixth.click(
            self._guard(self.sixth), [p.scene, p.seed], [*p.settings, *p.shown], **private
        )
        for name, button in p.presets.items():
            button.click(self._guard(self._only(name)), [p.scene], p.shown, **private)
        p.examples.select(self._guard(self.example), p.settings, scened, **private)
        if p.fresh is not None:
            p.fresh.click(self._guard(self.fresh), p.settings, scened, **private)
        gr.on(
            [event for file in p.files.values() for event in (file.upload, file.clear)],
            self._guard(self.upload),
            [*p.files.values(), *p.settings],
            [p.scene, p.examples, *p.shown],
            **private,
        )
        p.download.click(
            self._guard(self.download), [p.scene, *painters], [p.saver, p.alert], **private
        )

    def start(self, *settings: Any) -> Update:
        """Show the first example to a new visitor."""
        return self._enter(self.examples[0], settings, chosen=0)

    def example(self, event: gr.EventData, *settings: Any) -> Update:
        """Show the clicked example."""
        try:
            index = event.index
        except (AttributeError, TypeError):  # TypeError: the client sent no mapping
            index = None
        if not isinstance(index, int) or not 0 <= index < len(self.examples):
            raise UserError(f"No example {index}: there are {len(self.examples)}.")
        return self._enter(self.examples[index], settings, chosen=index)

    def fresh(self, *settings: Any) -> Update:
        """Render a new room."""
        scene = render_scene(random.randrange(MAX_NUMBER), self.session.engine.spec)
        return self._enter(scene, settings, chosen=-1)

    def upload(self, *values: Any) -> Update:
        """Show the uploaded files as one scene."""
        paths = dict(zip(self.parts.files, values, strict=False))
        files = {name: Path(path) for name, path in paths.items() if path}
        if not files:
            return {}
        scene = from_files(files, self.session.engine.spec, "your image")
        update = self._enter(scene, values[len(self.parts.files) :], chosen=-1)
        return {key: v for key, v in update.items() if key not in self.parts.files.values()}

    def draw(self, scene: Scene | None, *settings: Any) -> Update:
        """Sample visible patches by the sliders; discards edits."""
        scene = scene or self.examples[0]
        visible = self.session.draw(scene, self.settings(settings))
        return self._show(self.session.page(scene, visible, {}))

    def resample(self, scene: Scene | None, *settings: Any) -> Update:
        """Sample with a new seed."""
        seed = random.randrange(min(MAX_SEED, 10_000))
        return {self.parts.seed: seed, **self.draw(scene, *settings[:-1], seed)}

    def sixth(self, scene: Scene | None, seed: float | None) -> Update:
        """Sample as in pre-training: one in six patches, uniform Dirichlet shares."""
        p, names = self.parts, [m.name for m in self.inputs]
        num_encoded_tokens = self.session.engine.num_patches // DEFAULT_FRACTION
        update = self.draw(scene, num_encoded_tokens, 1.0, *(1.0 for _ in names), seed)
        ones = dict.fromkeys(p.shares.values(), 1.0)
        return {p.num_encoded_tokens: num_encoded_tokens, p.concentration: 1.0, **ones, **update}

    def paint(self, scene: Scene | None, *strokes: Any) -> Update:
        """Predict after a change of the painters."""
        scene = scene or self.examples[0]
        visible, edits = self._read(scene, strokes)
        view = self.session.page(scene, visible, edits)
        # Returning a value would overwrite strokes painted in the meantime.
        painted = {
            self.parts.painters[n]: gr.update(picture=uri) for n, uri in view.pictures.items()
        }
        return {**self._show(view), **painted}

    def download(self, scene: Scene | None, *strokes: Any) -> Update:
        """Download the picture grid as a PNG."""
        scene = scene or self.examples[0]
        png = self.session.png(scene, *self._read(scene, strokes))
        value = {
            "name": "multimae.png",
            "data": data_uri(png),
            "count": time.time_ns(),
        }
        return {self.parts.saver: value}

    def settings(self, values: Sequence[Any]) -> Settings:
        """Parse component values in the order of :attr:`tools.app.page_layout.Parts.settings`."""
        num_encoded_tokens, concentration, *shares, seed = values
        names = [m.name for m in self.inputs]
        return Settings(
            int(num_encoded_tokens),
            float(concentration),
            {n: float(s) for n, s in zip(names, shares, strict=True)},
            int(seed or 0),
        )

    def _only(self, name: str) -> Callable[[Scene | None], Update]:
        """Return a handler that shows one input alone."""

        def only(scene: Scene | None) -> Update:
            scene = scene or self.examples[0]
            return self._show(self.session.page(scene, self.session.only(scene, name), {}))

        return only

    def _read(
        self, scene: Scene, strokes: Sequence[Any]
    ) -> tuple[dict[str, Mask], dict[str, Edits]]:
        named: Mapping[str, Any] = dict(zip(self.parts.painters, strokes, strict=True))
        return self.session.read(scene, named)

    def _enter(self, scene: Scene, settings: Sequence[Any], chosen: int) -> Update:
        """Switch to another scene."""
        p = self.parts
        return {
            p.scene: scene,
            p.examples: chosen,
            **dict.fromkeys(p.files.values()),
            **self.draw(scene, *settings),
        }

    def _show(self, view: PageUpdate) -> Update:
        p = self.parts
        painters: dict[gr.HTML, Any] = {
            painter: gr.update(value=view.strokes[name], picture=view.pictures.get(name, ""))
            for name, painter in p.painters.items()
        }
        panels = {panel: view.panels[name] for name, panel in p.panels.items()}
        return {**painters, **panels, p.status: status_html(view.status)}

    def _guard(self, handler: Callable[..., Update]) -> Callable[..., Update]:
        """Show user errors as an alert on the page; clear it on success."""

        @wraps(handler)
        def guarded(*args: Any, **kwargs: Any) -> Update:
            try:
                return {self.parts.alert: "", **handler(*args, **kwargs)}
            except UserError as err:
                return {self.parts.alert: alert_html(str(err))}

        return guarded

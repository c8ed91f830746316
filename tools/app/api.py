"""What the page asks of the server: plain values in, plain values out. Safe for all visitors."""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from multimae.images.readers import SUFFIXES
from multimae.plotting import reconstruction_grid, to_picture
from multimae.specs.errors import UserError
from multimae.specs.modalities import Modality
from multimae.specs.spec import ModelSpec
from tools.app import feature_panels, head_panels
from tools.app.engine import Engine
from tools.app.fill_in import PredictionPair, panel
from tools.app.page_pictures import RAMP, Sender, class_name, hex_colours, picture_of_stored, webp
from tools.app.photo_labels import PhotoLabeller
from tools.app.scenes import MAX_NUMBER, UPLOAD, Scene, Scenes, crop_box, shrink, title_of
from tools.app.strokes import (
    Edits,
    Mask,
    apply_edits,
    concentrations,
    edit_kind,
    from_bits,
    parse_edits,
    to_bits,
)
from tools.app.uploads import MAX_BYTES

Body = Mapping[str, Any]
Answer = dict[str, Any]

DEFAULT_FRACTION = 6
"""One in six patches is visible, as in pre-training."""
MAX_SEED = 2**31 - 1
THUMBNAIL = 96
_CROP_SIDE = 160
_MAX_HAVE = 500
_KEPT_OUTCOMES = 8


class Api:
    """The models and images behind the page."""

    def __init__(self, engines: Sequence[Engine], scenes: Scenes, labeller: PhotoLabeller) -> None:
        """Serve the first model with decoders and the first with heads."""
        self.decoders = next((e for e in engines if e.spec.outputs), None)
        self.heads = next((e for e in engines if e.spec.heads), None)
        self.encoder = engines[0]
        self.scenes, self.labeller = scenes, labeller
        self.actions: dict[str, Callable[[Body], Answer]] = {
            "fill": self.fill,
            "predict": self.predict,
            "features": self.features,
            "label": self.label,
        }
        self._outcomes: OrderedDict[str, head_panels.Outcome] = OrderedDict()
        self._lock = threading.Lock()

    def config(self) -> Answer:
        """What the page needs to know before its first request."""
        engine = self.decoders
        grids = engine.grids if engine else {}
        inputs = [
            {
                "name": m.name,
                "rows": grids[m.name][0],
                "columns": grids[m.name][1],
                "edit": edit_kind(m),
                "exact": m.is_labels,
                "classes": [
                    {"name": class_name(m, i), "colour": colour}
                    for i, colour in enumerate(hex_colours(m.num_classes) if m.is_labels else [])
                ],
            }
            for m in (engine.inputs if engine else ())
        ]
        return {
            "inputs": inputs,
            "outputs": [
                {"name": m.name, "note": _note(m), "exact": m.is_labels}
                for m in (engine.outputs if engine else ())
            ],
            "tokens": sum(rows * columns for rows, columns in grids.values()) // DEFAULT_FRACTION,
            "maxSeed": MAX_SEED,
            "maxRoom": MAX_NUMBER if self.scenes.can_render else 0,
            "heads": [head.name for head in self.heads.spec.heads] if self.heads else [],
            "features": [m.name for m in self.encoder.inputs],
            "blocks": len(self.encoder.model.encoder),
            "examples": [{"id": name, "title": title_of(name)} for name in self.scenes.ids],
            "uploads": [m.name for m in self.scenes.inputs],
            "accept": ",".join(sorted(SUFFIXES)),
            "maxBytes": MAX_BYTES,
            "ramp": RAMP,
        }

    def thumbnail(self, index: int) -> bytes:
        """WebP of an example.

        Raises:
            UserError: There is no such example.
        """
        if not 0 <= index < len(self.scenes.ids):
            raise UserError(f"No example {index}: there are {len(self.scenes.ids)}.")
        scene = self.scenes.get(self.scenes.ids[index])
        m = next(m for m in self.scenes.inputs if m.name in scene.pixels)
        return webp(picture_of_stored(shrink(scene.small[m.name], m, THUMBNAIL), m))

    def fill(self, body: Body) -> Answer:
        """Predict from visible patches: those of the body, or drawn by its settings.

        Raises:
            UserError: A value is malformed or out of range.
        """
        scene, engine = self.scenes.get(body.get("scene")), self._decoders()
        visible, edits = self._patches(scene, engine, body)
        pair = self._pair(scene, engine, visible, edits)
        send, patch = _sender(body), engine.spec.patch_size
        further = bool(body.get("further"))
        inputs = {m.name for m in engine.inputs}
        rows = {
            m.name: panel(pair, m, patch, send)
            for m in engine.outputs
            if m.name in inputs or further
        }
        shown = {
            m.name: send(to_picture(x, m, x), exact=m.is_labels)
            for m in engine.inputs
            if (x := pair.now.truth.get(m.name)) is not None
        }
        count = sum(int(mask.sum()) for mask in visible.values())
        total = sum(mask.size for mask in visible.values())
        answer: Answer = {
            **self._about(scene, send),
            "visible": {name: to_bits(mask) for name, mask in visible.items()},
            "edits": {name: {str(i): v for i, v in e.items()} for name, e in edits.items() if e},
            "inputs": shown,
            "rows": rows,
            "count": count,
            "total": total,
        }
        if not count:
            return answer | {"error": "No patch is visible: reveal at least one, of any modality."}
        milliseconds = 1000 * pair.now.seconds
        return answer | {
            "message": f"{scene.title}: {count} of {total} patches visible, the rest predicted in "
            f"{milliseconds:.0f} ms"
        }

    def predict(self, body: Body) -> Answer:
        """Run the heads of the fine-tuned model.

        Raises:
            UserError: There is no such model, or it cannot read the image.
        """
        engine = self.heads
        if engine is None:
            raise UserError(
                "These weights have no head: start the page with --weights and a fine-tuned model."
            )
        scene, send = self.scenes.get(body.get("scene")), _sender(body)
        point = _point(body.get("point"))
        outcome = self._outcome(engine, scene)
        return {
            **self._about(scene, send),
            "crops": [],  # the pictures show all that this model sees
            "rows": [
                head_panels.panel(engine, scene, name, result, point, send)
                for name, result in outcome.items()
            ],
            "message": f"{scene.title}: predicted by {engine.spec.name}",
        }

    def features(self, body: Body) -> Answer:
        """Attention from a patch, and principal components of the features.

        Raises:
            UserError: Patch or block are out of range.
        """
        scene, send = self.scenes.get(body.get("scene")), _sender(body)
        names = [m.name for m in self.encoder.inputs if m.name in scene.pixels]
        query = _query(body.get("query"), names, self.encoder)
        block = _integer(body.get("block"), 1, len(self.encoder.model.encoder), "block")
        rows = feature_panels.panels(self.encoder, scene, query, block, send)
        return {
            **self._about(scene, send),
            "rows": rows,
            "query": list(query),
            "message": f"{scene.title}: block {block}, attention from {query[0]}, row "
            f"{query[1] + 1}, column {query[2] + 1}, mean over heads",
        }

    def label(self, body: Body) -> Answer:
        """Add what pseudo-labelling predicts for a photo, as a new upload.

        Raises:
            UserError: No model can add anything.
        """
        scene = self.scenes.get(body.get("scene"))
        found, problems = self.labeller.label(scene, self.scenes.inputs)
        names = {name: f"predicted {name}" for name in found}
        files = {name: scene.files.get(name, scene.title) for name in scene.pixels}
        added = self.scenes.add({**scene.pixels, **found}, {**files, **names})
        return {"scene": added.id, "problems": problems}

    def upload(self, path: Path, modality: str, onto: str) -> Answer:
        """Read an uploaded file.

        Raises:
            UserError: It is invalid.
        """
        return {"scene": self.scenes.upload(path, modality, onto).id}

    def png(self, body: Body) -> bytes:
        """All pictures as one PNG.

        Raises:
            UserError: Nothing is visible.
        """
        scene, engine = self.scenes.get(body.get("scene")), self._decoders()
        visible, edits = self._patches(scene, engine, body)
        now = self._pair(scene, engine, visible, edits).now
        if not now.outputs:
            raise UserError("No patch is visible: there is nothing to download.")
        masks = {
            name: torch.from_numpy(~mask.ravel())[None].long() for name, mask in visible.items()
        }
        grid = reconstruction_grid(
            {name: x[None] for name, x in now.truth.items()},
            {name: x[None] for name, x in now.outputs.items()},
            masks,
            [m for m in engine.outputs if m.data_name in now.truth],
            engine.spec.patch_size,
        )
        buffer = io.BytesIO()
        grid.save(buffer, "PNG", optimize=True)
        return buffer.getvalue()

    def _decoders(self) -> Engine:
        if self.decoders is None:
            raise UserError(
                "These weights have no decoders: start the page with --weights and a pre-trained "
                "model."
            )
        return self.decoders

    def _outcome(self, engine: Engine, scene: Scene) -> head_panels.Outcome:
        """Predictions of a scene; the last few are kept."""
        with self._lock:
            if scene.id in self._outcomes:
                return self._outcomes[scene.id]
        outcome = head_panels.predict(engine, scene)
        with self._lock:
            self._outcomes[scene.id] = outcome
            while len(self._outcomes) > _KEPT_OUTCOMES:
                self._outcomes.popitem(last=False)
        return outcome

    def _patches(
        self, scene: Scene, engine: Engine, body: Body
    ) -> tuple[dict[str, Mask], dict[str, Edits]]:
        """Visible patches and edits of a request."""
        if not scene.views:
            wanted = ", ".join(m.name for m in engine.inputs)
            raise UserError(f"This image has nothing that the pre-trained model reads: {wanted}.")
        bits, strokes = _mapping(body, "visible"), _mapping(body, "edits")
        inputs = [m for m in engine.inputs if m.name in scene.views]
        if not bits:
            return self._draw(scene, engine, body), {m.name: {} for m in inputs}
        masks = {m.name: _mask(bits.get(m.name), engine, m) for m in inputs}
        edits = {
            m.name: parse_edits(strokes.get(m.name) or {}, m, engine.grids[m.name]) for m in inputs
        }
        return masks, edits

    def _draw(self, scene: Scene, engine: Engine, body: Body) -> dict[str, Mask]:
        shares = _mapping(body, "shares")
        parts = {name: _number(shares.get(name, 1.0), "share") for name in scene.views}
        alphas = concentrations(_number(body.get("concentration", 1.0), "concentration"), parts)
        seed = _integer(body.get("seed", 0), 0, MAX_SEED, "seed")
        total = sum(rows * columns for rows, columns in engine.grids.values())
        tokens = _integer(body.get("tokens", total // DEFAULT_FRACTION), 1, total, "number")
        return engine.draw(scene.views, tokens, alphas, seed)

    def _pair(
        self,
        scene: Scene,
        engine: Engine,
        visible: Mapping[str, Mask],
        edits: Mapping[str, Edits],
    ) -> PredictionPair:
        """Predict with the edits and, if there are any, without them."""
        changed = {
            m.name: apply_edits(scene.views[m.name], edits.get(m.name, {}), m, engine.grids[m.name])
            for m in engine.inputs
            if m.name in scene.views
        }
        now = engine.predict(changed, visible)
        edited = any(edits.values()) and bool(now.outputs)
        before = engine.predict(scene.views, visible) if edited else None
        return PredictionPair(now, before, scene.metric)

    def _about(self, scene: Scene, send: Sender) -> Answer:
        """Id, title and modalities of a scene, and what of its files the model sees."""
        uploaded = scene.files if scene.id.startswith(UPLOAD) else {}
        spec = self.decoders.spec if self.decoders else None
        crops = [] if spec is None else [_crop(scene, m, spec, send) for m in self.scenes.inputs]
        return {
            "scene": scene.id,
            "title": scene.title,
            "has": [m.name for m in self.scenes.inputs if m.name in scene.pixels],
            "files": dict(uploaded),
            "crops": [crop for crop in crops if crop],
        }


def _crop(scene: Scene, m: Modality, spec: ModelSpec, send: Sender) -> Answer | None:
    """What the model sees of a file; ``None``: all of it, or there is none."""
    if m.name not in scene.files:
        return None
    view = crop_box(scene.pixels[m.name], spec)
    height, width = view.image_size
    if (view.height, view.width) == (height, width):
        return None
    small = picture_of_stored(shrink(scene.small[m.name], m, _CROP_SIDE), m)
    return {
        "name": m.name,
        "file": scene.files[m.name],
        "size": [width, height],
        "box": [view.left, view.top, view.width, view.height],
        "picture": send(small, exact=m.is_labels),
    }


def _note(m: Modality) -> str:
    return f"{m.data_name}, every patch standardised" if m.norm_pix else "not an input"


def _sender(body: Body) -> Sender:
    have = body.get("have")
    names = have[:_MAX_HAVE] if isinstance(have, list) else []
    return Sender(frozenset(name for name in names if isinstance(name, str)))


def _mapping(body: Body, key: str) -> Mapping[str, Any]:
    value = body.get(key) or {}
    if not isinstance(value, Mapping):
        raise UserError(f"{key} must map modalities to values, not {str(value)[:40]!r}.")
    return value


def _mask(bits: object, engine: Engine, m: Modality) -> Mask:
    grid = engine.grids[m.name]
    return from_bits(bits, grid, m.name) if bits else np.zeros(grid, bool)


def _number(value: object, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
        raise UserError(f"The {name} must be a number, not {str(value)[:40]!r}.")
    return float(value)


def _integer(value: object, low: int, high: int, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise UserError(f"The {name} must be an integer from {low} to {high}.")
    return value


def _point(value: object) -> head_panels.Point:
    if value is None:
        return 0.5, 0.5
    if not isinstance(value, list) or len(value) != 2:
        raise UserError("A point is two fractions of width and height.")
    x, y = (min(1.0, max(0.0, _number(v, "point"))) for v in value)
    return x, y


def _query(value: object, names: Sequence[str], engine: Engine) -> feature_panels.Query:
    """A patch; the middle of the first input if the image lacks the modality."""
    if not isinstance(value, list) or len(value) != 3 or value[0] not in names:
        name = names[0] if names else engine.inputs[0].name
        rows, columns = engine.grids[name]
        return name, rows // 2, columns // 2
    row, column = (_integer(v, 0, MAX_SEED, "patch") for v in value[1:])
    return str(value[0]), row, column

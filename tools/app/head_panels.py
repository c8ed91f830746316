"""The tab "predict": what the heads of a fine-tuned model say about an image."""

from __future__ import annotations

from typing import Any

import numpy as np

from multimae.images.views import View
from multimae.inference.predict import (
    ClassPrediction,
    LabelPrediction,
    NumberPrediction,
    Prediction,
    ValuePrediction,
)
from multimae.plotting.colours import Picture, scalar_colours
from multimae.plotting.overlays import blend_labels, nearest
from multimae.specs.errors import UserError
from multimae.specs.modalities import Modality
from tools.app.engine import Engine
from tools.app.page_pictures import Sender, chips, class_name, hex_colours, picture_of_stored, scale
from tools.app.scenes import Scene, fitting_inputs, shrink

PICTURE_SIDE = 384
"""Longer side of the pictures."""
TOP_CLASSES = 5
_MIN_SHARE = 0.001  # of the pixels, of a class in the legend

Outcome = dict[str, Prediction]
Point = tuple[float, float]
"""Fractions of the width and height of the region that the model sees."""


def predict(engine: Engine, scene: Scene) -> Outcome:
    """Run all heads.

    Raises:
        UserError: The scene has none of the model's inputs.
    """
    names = [m.name for m in fitting_inputs(engine.spec, scene)]
    if not names:
        wanted = ", ".join(m.name for m in engine.inputs)
        raise UserError(f"This image has nothing that the fine-tuned model reads: {wanted}.")
    with engine.lock:
        return engine.model.predict({name: scene.small[name] for name in names})


def panel(
    engine: Engine, scene: Scene, name: str, outcome: Prediction, point: Point, send: Sender
) -> dict[str, Any]:
    """Pictures, legend and probabilities of one head.

    Args:
        engine: The model.
        scene: The image.
        name: Of the head.
        outcome: Of the head.
        point: Where dense predictions are read.
        send: Encodes pictures.
    """
    m = next((m for m in fitting_inputs(engine.spec, scene) if m.is_photo), None)
    m = m or fitting_inputs(engine.spec, scene)[0]
    row: dict[str, Any] = {"name": name, "legend": [], "scales": [], "bars": [], "numbers": []}
    if isinstance(outcome, ClassPrediction | NumberPrediction):
        row["pictures"] = {"image": send(_region(scene, m, None))}
        if isinstance(outcome, ClassPrediction):
            shares = outcome.probabilities[:TOP_CLASSES].tolist()
            row["bars"] = _bars(list(outcome.names[:TOP_CLASSES]), shares, [])
        else:
            values = zip(outcome.names, outcome.values.tolist(), strict=True)
            row["numbers"] = [{"name": n, "value": f"{value:.4g}"} for n, value in values]
        return row
    photo = _region(scene, m, outcome.view)
    if isinstance(outcome, LabelPrediction):
        return row | _labels(outcome, photo, point, send)
    return row | _values(name, outcome, photo, point, send)


def _labels(outcome: LabelPrediction, photo: Picture, point: Point, send: Sender) -> dict[str, Any]:
    target, colours = outcome.target, hex_colours(outcome.target.num_classes + 1)
    probabilities = outcome.logits.float().softmax(dim=0)
    height, width = probabilities.shape[1:]
    y, x = int(point[1] * (height - 1) + 0.5), int(point[0] * (width - 1) + 0.5)
    top = probabilities[:, y, x].topk(min(TOP_CLASSES, len(probabilities)))
    order = top.indices.tolist()
    confidence = scalar_colours(probabilities.amax(dim=0).numpy(), 0.0, 1.0)
    ids = nearest(outcome.ids, photo.shape[:2])
    shares = np.bincount(ids[ids >= 0].ravel(), minlength=target.num_classes) / max(1, ids.size)
    present = [i for i in np.argsort(-shares, kind="stable").tolist() if shares[i] >= _MIN_SHARE]
    return {
        "pictures": {
            "image": send(photo),
            "overlay": send(blend_labels(photo, ids, target)),
            "confidence": send(nearest(confidence, photo.shape[:2])),
        },
        "legend": chips(
            (f"{class_name(target, i)} {100 * shares[i]:.1f} %", colours[i + 1]) for i in present
        ),
        "scales": [scale("confidence", "0 %", "100 %")],
        "bars": _bars(
            [class_name(target, i) for i in order],
            top.values.tolist(),
            [colours[i + 1] for i in order],
        ),
        "point": list(point),
    }


def _values(
    name: str, outcome: ValuePrediction, photo: Picture, point: Point, send: Sender
) -> dict[str, Any]:
    values = outcome.values if outcome.values.ndim == 3 else outcome.values[..., None]
    height, width = values.shape[:2]
    here = values[int(point[1] * (height - 1) + 0.5), int(point[0] * (width - 1) + 0.5)]
    known = values[np.isfinite(values)]
    low, high = np.percentile(known, [2, 98]).tolist() if known.size else (0.0, 1.0)
    texts = [f"{value:.2f} {outcome.unit}".rstrip() for value in (low, high)]
    drawn = outcome.target.plot == "scalar"
    read = [f"{value:.2f} {outcome.unit}".rstrip() for value in here.tolist()]
    picture = nearest(outcome.picture(), photo.shape[:2])
    return {
        "pictures": {"image": send(photo), "prediction": send(picture)},
        "scales": [scale(name, *texts)] if drawn else [],
        "numbers": [{"name": "at the mark", "value": ", ".join(read)}],
        "point": list(point),
    }


def _bars(names: list[str], shares: list[float], colours: list[str]) -> list[dict[str, Any]]:
    """Probabilities as bars."""
    filled = colours or [""] * len(names)
    return [
        {"name": name, "share": share, "text": f"{100 * share:.1f} %", "colour": colour}
        for name, share, colour in zip(names, shares, filled, strict=True)
    ]


def _region(scene: Scene, m: Modality, view: View | None) -> Picture:
    """Picture of the part of an image that the model sees."""
    picture = picture_of_stored(shrink(scene.small[m.name], m, PICTURE_SIDE), m)
    if view is None:
        return picture
    scales = [side / full for side, full in zip(picture.shape[:2], view.image_size, strict=True)]
    top, left = round(view.top * scales[0]), round(view.left * scales[1])
    height = max(1, round(view.height * scales[0]))
    width = max(1, round(view.width * scales[1]))
    return np.ascontiguousarray(picture[top : top + height, left : left + width])

"""The tab "features": attention from a patch, and principal components of features as colours."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from multimae.images.inputs import load_inputs
from multimae.inference.encode import attention_maps, encode
from multimae.plotting.attention import attention_picture
from multimae.plotting.colours import Picture
from multimae.plotting.overlays import nearest
from multimae.plotting.pictures import to_picture
from multimae.specs.errors import UserError
from tools.app.engine import Engine
from tools.app.page_pictures import Sender
from tools.app.scenes import Scene, fitting_inputs

Query = tuple[str, int, int]
"""Modality, row and column of a patch."""
_RANGE = (2, 98)  # percentiles


def panels(
    engine: Engine, scene: Scene, query: Query, block: int, send: Sender
) -> dict[str, dict[str, Any]]:
    """Per input: its image, the attention of ``query`` after ``block``, and the components.

    Args:
        engine: The model; all patches are visible.
        scene: The image.
        query: The patch; the middle of the first input if the image has no such modality.
        block: Block of the encoder, from 1.
        send: Encodes pictures.

    Raises:
        UserError: The scene has no input of the model, or patch or block are out of range.
    """
    inputs = fitting_inputs(engine.spec, scene)
    if not inputs:
        wanted = ", ".join(m.name for m in engine.inputs)
        raise UserError(f"This image has nothing that the model reads: {wanted}.")
    try:
        batch = load_inputs({m.name: scene.small[m.name] for m in inputs}, engine.spec)
        with engine.lock, torch.inference_mode():
            maps = attention_maps(engine.model, batch, query, block - 1)
            encoding = encode(engine.model, batch, [block - 1])
    except ValueError as err:
        raise UserError(str(err)) from err
    features = {m.name: encoding.feature_map(m.name)[0].permute(1, 2, 0).numpy() for m in inputs}
    colours = component_colours(features)
    weights = {name: weight[0].numpy() for name, weight in maps.items()}
    top = max(float(np.percentile(weight, 99)) for weight in weights.values())
    rows = {}
    for m in inputs:
        picture = to_picture(batch.x[m.name][0], m)
        rows[m.name] = {
            "pictures": {
                "image": send(picture, exact=m.is_labels),
                "attention": send(attention_picture(picture, weights[m.name], top)),
                "components": send(nearest(colours[m.name], picture.shape[:2]), exact=True),
            },
            "grid": list(weights[m.name].shape),
            "score": f"{100 * weights[m.name].sum():.0f} % of the attention",
        }
    return rows


def component_colours(features: dict[str, np.ndarray[Any, Any]]) -> dict[str, Picture]:
    """First three principal components of all tokens as red, green and blue.

    Args:
        features: ``(rows, columns, d)`` by modality.

    Returns:
        ``(rows, columns, 3)`` by modality; each component from its 2nd to its 98th percentile.
    """
    tokens = np.concatenate([x.reshape(-1, x.shape[-1]) for x in features.values()])
    mean = tokens.mean(axis=0)
    axes = np.linalg.svd(tokens - mean, full_matrices=False)[2][:3]
    axes = axes * np.sign(axes.sum(axis=1, keepdims=True))  # the sign of an axis is arbitrary
    low, high = np.percentile((tokens - mean) @ axes.T, _RANGE, axis=0)
    span = np.maximum(high - low, 1e-12)
    return {
        name: ((((x - mean) @ axes.T - low) / span).clip(0, 1) * 255).round().astype(np.uint8)
        for name, x in features.items()
    }

"""The page's logic without Gradio: plain values in, plain values out."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from multimae.plotting import reconstruction_grid, to_picture
from multimae.specs.errors import UserError
from multimae.specs.modalities import Modality
from tools.app.engine import Engine, Prediction
from tools.app.panels import PredictionPair, panels_html
from tools.app.scenes import Scene
from tools.app.strokes import (
    Edits,
    Mask,
    apply_edits,
    concentrations,
    from_bits,
    parse_edits,
    to_bits,
)
from tools.common.data_uri import encode

Strokes = Mapping[str, Any]
"""Painter values by input: ``{"visible": bits, "edits": {patch: value}}``."""

MAX_SEED = 2**31 - 1


@dataclass(frozen=True)
class Settings:
    """Values of the sampling controls.

    Attributes:
        num_encoded_tokens: Number of visible patches.
        concentration: Of the Dirichlet distribution, see
        :func:`tools.app.strokes.concentrations`.
        shares: Expected fraction by input, unnormalized.
        seed: Seed of the sampling.
    """

    num_encoded_tokens: int
    concentration: float
    shares: Mapping[str, float]
    seed: int


@dataclass(frozen=True)
class PageUpdate:
    """New contents of the page.

    Attributes:
        strokes: New values of the painters.
        pictures: Painter backgrounds by available input, with edits, as data URIs.
        panels: HTML by output.
        status: Line below the pictures.
    """

    strokes: dict[str, dict[str, Any]]
    pictures: dict[str, str]
    panels: dict[str, str]
    status: str


class Session:
    """Turns scenes, settings and strokes into page updates. Stateless: safe for all visitors."""

    def __init__(self, engine: Engine) -> None:
        """Serve one model."""
        self.engine = engine

    def draw(self, scene: Scene, settings: Settings) -> dict[str, Mask]:
        """Sample visible patches.

        Raises:
            UserError: Settings out of range.
        """
        shares = {
            m.name: settings.shares[m.name] for m in self.engine.inputs if m.name in scene.pixels
        }
        if not 0 <= settings.seed <= MAX_SEED:
            raise UserError(f"The seed must be an integer from 0 to {MAX_SEED}.")
        alphas = concentrations(settings.concentration, shares)
        return self.engine.draw(
            scene.pixels, int(settings.num_encoded_tokens), alphas, int(settings.seed)
        )

    def only(self, scene: Scene, name: str) -> dict[str, Mask]:
        """Show all patches of one input and none of the others.

        Raises:
            UserError: The scene has no such image.
        """
        if name not in scene.pixels:
            raise UserError(f"This image has no {name}: add a file under “Your own images”.")
        return {other: self._full(other, other == name) for other in scene.pixels}

    def read(self, scene: Scene, strokes: Strokes) -> tuple[dict[str, Mask], dict[str, Edits]]:
        """Parse the masks and edits of the painters.

        Raises:
            UserError: A value is malformed.
        """
        masks, edits = {}, {}
        for m in self.engine.inputs:
            if m.name not in scene.pixels:
                continue
            stroke = strokes.get(m.name) or {}
            if not isinstance(stroke, Mapping):
                raise UserError(f"The painter of {m.name} must hold visible patches and edits.")
            grid = self.engine.grids[m.name]
            bits = stroke.get("visible")
            masks[m.name] = from_bits(bits, grid, m.name) if bits else self._full(m.name, False)
            edits[m.name] = parse_edits(stroke.get("edits") or {}, m, grid)
        return masks, edits

    def predict(
        self, scene: Scene, visible: Mapping[str, Mask], edits: Mapping[str, Edits]
    ) -> PredictionPair:
        """Predict with the edits and, if there are any, without them."""
        now = self.engine.predict(self._edited(scene, edits), visible)
        before = self.engine.predict(scene.pixels, visible) if any(edits.values()) else None
        return PredictionPair(now, before)

    def page(
        self, scene: Scene, visible: Mapping[str, Mask], edits: Mapping[str, Edits]
    ) -> PageUpdate:
        """Build the page contents for a set of visible patches.

        Raises:
            UserError: Nothing is visible.
        """
        pair = self.predict(scene, visible, edits)
        patch = self.engine.spec.patch_size
        strokes = {
            m.name: {
                "visible": to_bits(visible[m.name]) if m.name in visible else "",
                "edits": {str(i): value for i, value in edits.get(m.name, {}).items()},
            }
            for m in self.engine.inputs
        }
        shown = {
            m.name: self._picture(pair.now, m) for m in self.engine.inputs if m.name in visible
        }
        panels = {m.name: panels_html(pair, m, patch) for m in self.engine.outputs}
        return PageUpdate(strokes, shown, panels, self._status(scene, pair))

    def png(self, scene: Scene, visible: Mapping[str, Mask], edits: Mapping[str, Edits]) -> bytes:
        """Return the picture grid as PNG bytes.

        Raises:
            UserError: Nothing is visible.
        """
        now = self.predict(scene, visible, edits).now
        modalities = [m for m in self.engine.outputs if m.data_name in now.truth]
        masks = {
            name: torch.from_numpy(~mask.ravel())[None].long() for name, mask in visible.items()
        }
        grid = reconstruction_grid(
            {name: x[None] for name, x in now.truth.items()},
            {name: x[None] for name, x in now.outputs.items()},
            masks,
            modalities,
            self.engine.spec.patch_size,
        )
        buffer = io.BytesIO()
        grid.save(buffer, "PNG", optimize=True)
        return buffer.getvalue()

    def _edited(self, scene: Scene, edits: Mapping[str, Edits]) -> dict[str, Any]:
        return {
            m.name: apply_edits(
                scene.pixels[m.name], edits.get(m.name, {}), m, self.engine.grids[m.name]
            )
            for m in self.engine.inputs
            if m.name in scene.pixels
        }

    def _picture(self, now: Prediction, m: Modality) -> str:
        truth = now.truth[m.name]
        return encode(to_picture(truth, m, truth))

    def _full(self, name: str, value: bool) -> Mask:
        return np.full(self.engine.grids[name], value)

    def _status(self, scene: Scene, pair: PredictionPair) -> str:
        visible = sum(int(mask.sum()) for mask in pair.now.visible.values())
        total = sum(mask.size for mask in pair.now.visible.values())
        return (
            f"{scene.title}: {visible} of {total} patches visible, the rest predicted in "
            f"{1000 * pair.now.seconds:.0f} ms"
        )

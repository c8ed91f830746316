"""Pictures of predictions."""

from __future__ import annotations

import numpy as np
import pytest

from multimae.plotting.predictions import prediction_grid


def test_prediction_grid_layout_with_full_captions() -> None:
    picture = np.zeros((64, 64, 3), np.uint8)
    plain = prediction_grid({"rgb": [picture] * 7})
    assert plain.width > 5 * plain.height / 2  # six across, two rows
    triple = prediction_grid({k: [picture] * 7 for k in ("rgb", "prediction", "truth")})
    assert triple.height > triple.width / 2  # two across, four rows
    caption = "wrong: dining_room (20 %), truth: living_room and some more"
    captioned = prediction_grid({"rgb": [picture]}, captions=[caption])
    ink = np.asarray(captioned.convert("L")) < 200
    assert not ink[:, -4:].any() and captioned.width > plain.width / 6
    with pytest.raises(ValueError, match="columns of one length"):
        prediction_grid({"rgb": [picture], "truth": []})

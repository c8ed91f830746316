"""Class names of the rendered label maps: the 40 classes of NYU Depth v2."""

from __future__ import annotations

from multimae.specs.class_names import NYU40_CLASSES as NYU40_CLASSES

CLASS_IDS: dict[str, int] = {name: i for i, name in enumerate(NYU40_CLASSES)}
"""Ids by name."""

ROOM_TYPES: tuple[str, ...] = (
    "bathroom",
    "bedroom",
    "dining_room",
    "kitchen",
    "library",
    "living_room",
    "office",
)
"""Room types, which are the sub-folders of the multimae layout."""

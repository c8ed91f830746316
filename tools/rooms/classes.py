"""Class names of the rendered label maps: the 40 classes of NYU Depth v2."""

from __future__ import annotations

NYU40_CLASSES: tuple[str, ...] = (
    "void",
    "wall",
    "floor",
    "cabinet",
    "bed",
    "chair",
    "sofa",
    "table",
    "door",
    "window",
    "bookshelf",
    "picture",
    "counter",
    "blinds",
    "desk",
    "shelves",
    "curtain",
    "dresser",
    "pillow",
    "mirror",
    "floor mat",
    "clothes",
    "ceiling",
    "books",
    "refrigerator",
    "television",
    "paper",
    "towel",
    "shower curtain",
    "box",
    "whiteboard",
    "person",
    "night stand",
    "toilet",
    "sink",
    "lamp",
    "bathtub",
    "bag",
    "otherstructure",
    "otherfurniture",
    "otherprop",
)
"""Names by id; id 0 is "void" (unlabelled), ids 1 to 40 are the NYU40 classes."""

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

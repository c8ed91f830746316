"""Class names of published data sets."""

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


_STORED = {"nyu": NYU40_CLASSES, "nyuv2": NYU40_CLASSES, "hypersim": NYU40_CLASSES}


def published_class_names(dataset: str, num_classes: int) -> tuple[str, ...]:
    """Names of the classes without void, if the data set is known and has as many; else empty."""
    names = _STORED.get(dataset.lower(), ())[1:]
    return names if len(names) == num_classes else ()

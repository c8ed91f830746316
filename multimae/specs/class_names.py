"""Class names of public data sets."""

from __future__ import annotations

from multimae.specs.coercion import did_you_mean


def _names(text: str) -> tuple[str, ...]:
    return tuple(" ".join(text.split()).split(", "))


NYU40_CLASSES: tuple[str, ...] = _names("""
    void, wall, floor, cabinet, bed, chair, sofa, table, door, window, bookshelf, picture,
    counter, blinds, desk, shelves, curtain, dresser, pillow, mirror, floor mat, clothes, ceiling,
    books, refrigerator, television, paper, towel, shower curtain, box, whiteboard, person, night
    stand, toilet, sink, lamp, bathtub, bag, otherstructure, otherfurniture, otherprop
""")
"""Names by id; id 0 is "void" (unlabelled), ids 1 to 40 are the NYU40 classes."""

ADE20K_CLASSES: tuple[str, ...] = _names("""
    wall, building, sky, floor, tree, ceiling, road, bed, windowpane, grass, cabinet, sidewalk,
    person, earth, door, table, mountain, plant, curtain, chair, car, water, painting, sofa,
    shelf, house, sea, mirror, rug, field, armchair, seat, fence, desk, rock, wardrobe, lamp,
    bathtub, railing, cushion, base, box, column, signboard, chest of drawers, counter, sand,
    sink, skyscraper, fireplace, refrigerator, grandstand, path, stairs, runway, case, pool table,
    pillow, screen door, stairway, river, bridge, bookcase, blind, coffee table, toilet, flower,
    book, hill, bench, countertop, stove, palm, kitchen island, computer, swivel chair, boat, bar,
    arcade machine, hovel, bus, towel, light, truck, tower, chandelier, awning, streetlight,
    booth, television receiver, airplane, dirt track, apparel, pole, land, bannister, escalator,
    ottoman, bottle, buffet, poster, stage, van, ship, fountain, conveyer belt, canopy, washer,
    plaything, swimming pool, stool, barrel, basket, waterfall, tent, bag, minibike, cradle, oven,
    ball, food, step, tank, trade name, microwave, pot, animal, bicycle, lake, dishwasher, screen,
    blanket, sculpture, hood, sconce, vase, traffic light, tray, ashcan, fan, pier, crt screen,
    plate, monitor, bulletin board, shower, radiator, glass, clock, flag
""")
"""The 150 classes of the scene parsing benchmark; stored label images count from 1, 0 is void."""

COCO_CLASSES: tuple[str, ...] = _names("""
    person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire
    hydrant, stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear,
    zebra, giraffe, backpack, umbrella, handbag, tie, suitcase, frisbee, skis, snowboard, sports
    ball, kite, baseball bat, baseball glove, skateboard, surfboard, tennis racket, bottle, wine
    glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange, broccoli, carrot, hot
    dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv, laptop,
    mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, book,
    clock, vase, scissors, teddy bear, hair drier, toothbrush, banner, blanket, bridge, cardboard,
    counter, curtain, door-stuff, floor-wood, flower, fruit, gravel, house, light, mirror-stuff,
    net, pillow, platform, playingfield, railroad, river, road, roof, sand, sea, shelf, snow,
    stairs, tent, towel, wall-brick, wall-stone, wall-tile, wall-wood, water-other, window-blind,
    window-other, tree-merged, fence-merged, ceiling-merged, sky-other-merged, cabinet-merged,
    table-merged, floor-other-merged, pavement-merged, mountain-merged, grass-merged, dirt-merged,
    paper-merged, food-other-merged, building-other-merged, rock-merged, wall-other-merged, 
    rug-merged
""")
"""The 133 panoptic classes by contiguous id from 0, as pseudo labels store them."""

_WITHOUT_VOID = {
    "nyu": NYU40_CLASSES[1:],
    "nyuv2": NYU40_CLASSES[1:],
    "nyu40": NYU40_CLASSES[1:],
    "hypersim": NYU40_CLASSES[1:],
    "ade": ADE20K_CLASSES,
    "ade20k": ADE20K_CLASSES,
    "coco": COCO_CLASSES,
}


def names_of_set(dataset: str, num_classes: int) -> tuple[str, ...]:
    """Names by class id of a published data set, with "void" first if there is one class more.

    Raises:
        ValueError: An unknown data set, or another number of classes.
    """
    names = _WITHOUT_VOID.get(dataset.lower())
    if names is None:
        near = did_you_mean(dataset.lower(), _WITHOUT_VOID)
        raise ValueError(f"no published label set '{dataset}'{near} ({', '.join(_WITHOUT_VOID)})")
    if num_classes not in (len(names), len(names) + 1):
        raise ValueError(
            f"{dataset} has {len(names)} classes, {len(names) + 1} with void; num_classes is "
            f"{num_classes}"
        )
    return names if num_classes == len(names) else ("void", *names)


def published_class_names(dataset: str | None, num_classes: int) -> tuple[str, ...]:
    """Names of the classes without void.

    Args:
        dataset: Name of the data set; ``None``: any with this number of classes (published weight
            files do not store the name).
        num_classes: Number of classes without void.

    Returns:
        Class names; empty if the data set is unknown or has another number of classes.
    """
    sets = _WITHOUT_VOID.values() if dataset is None else [_WITHOUT_VOID.get(dataset.lower(), ())]
    return next((names for names in sets if len(names) == num_classes), ())

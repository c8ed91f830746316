"""From the names in a furniture catalogue to keys and NYU40 classes."""

from __future__ import annotations

import re

from tools.rooms.classes import CLASS_IDS

_INDOOR = re.compile(r"bath|bed|living|kitchen|office|light|misc|character|dining|room", re.I)

# First match wins, so narrow names come before wide ones.
_RULES: tuple[tuple[str, str], ...] = (
    (r"deck|beach|pool|wheel|electric|baby|child|high chair|hospital|doll|toy|model|class", ""),
    (r"table tennis|technical|operating|football|changing|pad|corner|tablet", ""),
    (r"office chair|swivel", "office chair"),
    (r"bedside|night ?stand|night table", "night stand"),
    (r"wardrobe|closet", "wardrobe"),
    (r"dresser|chest of drawers|commode|drawers cabinet", "dresser"),
    (r"bookcase|bookshel", "bookshelf"),
    (r"arm ?chair|winchester armchair", "armchair"),
    (r"stool|bar chair|bench|ottoman|puff", "stool"),
    (r"chair", "chair"),
    (r"sofa|couch|settee", "sofa"),
    (r"coffee table|glass table|low table", "coffee table"),
    (r"tv stand|television cabinet|tv cabinet", "tv cabinet"),
    (r"^tv\b|television", "television"),
    (r"desk lamp|table lamp|little lamp|vase lamp", "table lamp"),
    (r"^lamp$|floor lamp|standing lamp", "floor lamp"),
    (r"desk", "desk"),
    (r"dressing table|folding table|bar table", ""),
    (r"table", "table"),
    (r"fridge|refrigerator", "refrigerator"),
    (r"bathtub|^bath$|island bath", "bathtub"),
    (r"washbasin|vanity|basin|lavatory", "sink"),
    (r"toilets? unit|^toilet$|^wc$", "toilet"),
    (r"plant|ficus|yucca|bamboo|bonsai|cactus|lily|spathi", "plant"),
    (r"^box$|cardboard box|crate|carton", "box"),
    (r"^bed$|double bed|iron bed|day bed|futon$|single bed|captain", "bed"),
    (r"male|female|woman|^man\b|mannequin", "person"),
    (r"cupboard|^cabinet|sideboard|glass door cabinet|filing cabinet|chest$", "cabinet"),
    (r"cube", "box"),
)

_CLASSES = {
    "office chair": "chair",
    "armchair": "chair",
    "stool": "chair",
    "wardrobe": "cabinet",
    "tv cabinet": "cabinet",
    "coffee table": "table",
    "table lamp": "lamp",
    "floor lamp": "lamp",
    "plant": "otherprop",
}


def key_of(name: str, category: str) -> str | None:
    """Return the key that a catalogue entry can stand in for.

    Args:
        name: English name of the piece.
        category: English category of the piece.

    Returns:
        A key such as "armchair", or None when the piece has no use indoors here.
    """
    low = name.lower()
    if not _INDOOR.search(category):
        return None
    if category.lower().startswith("character") and re.search(r"cat|dog|horse|chick|rabbit", low):
        return None
    for pattern, key in _RULES:
        if re.search(pattern, low):
            if key in ("armchair", "chair") and category.lower().startswith("office"):
                return "office chair"
            return key or None
    return None


def nyu_class(key: str) -> int:
    """Return the NYU40 class id of a key.

    Args:
        key: A key given by `key_of`.

    Returns:
        The id, 1 to 40.

    Raises:
        KeyError: The key is unknown.
    """
    return CLASS_IDS[_CLASSES.get(key, key)]

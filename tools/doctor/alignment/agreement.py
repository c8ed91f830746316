"""Agreement of two modalities over a data set, and the best partner of each sample."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from multimae.specs.modalities import Modality
from tools.doctor.alignment.edge_correlation import Moments, PairScores
from tools.doctor.alignment.edges import Floats
from tools.doctor.files.file_listing import Listing

Pair = tuple[str, str]
FeaturesOf = Callable[[Sequence[str], Modality], dict[str, Floats]]
"""Normalized edge features by sample name, each ``[3, side, side]``."""

# A pair this many standard deviations above chance belongs together (rendered rooms: at least 7).
CERTAIN = 5.0
_SPREADS = 4.0
_ENOUGH, _MAX_SHUFFLED = 90, 500


@dataclass(frozen=True)
class PairSummary:
    """Agreement of two modalities over a data set, as correlations of edges.

    Attributes:
        samples: Number of samples compared.
        median: Median correlation of samples as paired.
        low: Lower bound for true pairs, from the spread about the median.
        chance: Mean correlation of unrelated images.
        std: Its standard deviation.
        shift_std: The larger of ``std`` and the standard deviation at far offsets.
        telling: Whether true pairs can be told from unrelated images at all.
    """

    samples: int
    median: float
    low: float
    chance: float
    std: float
    shift_std: float
    telling: bool

    def deviations(self, score: float) -> float:
        """Standard deviations of ``score`` above chance."""
        return (score - self.chance) / max(self.std, 1e-6)

    def shift_deviations(self, score: float) -> float:
        """The same for the best of many offsets, where repeating patterns correlate by chance."""
        return (score - self.chance) / max(self.shift_std, 1e-6)


def summarise_pairs(
    listing: Listing, pairs: Mapping[Pair, PairScores], features_of: FeaturesOf
) -> dict[Pair, PairSummary]:
    """Summarise each pair of modalities, robust to misaligned files.

    Args:
        listing: Files and modalities.
        pairs: Scores by pair of modality names.
        features_of: Reads samples again, to detect an entirely shuffled set.
    """
    out = {}
    for pair, scores in pairs.items():
        if scores.keys:
            out[pair] = _summary(scores, scores.shuffled)
            if not out[pair].telling:
                # True pairs among the shuffled ones would raise the chance level.
                draft = _summary(scores, scores.displaced)
                if _fits_others(listing, pair, scores, draft, features_of):
                    out[pair] = dataclasses.replace(draft, telling=True)
    return out


def _summary(scores: PairScores, moments: Moments) -> PairSummary:
    chance, std = (moments if moments.n >= _ENOUGH else scores.displaced).mean_and_std()
    wide = max(std, scores.displaced.mean_and_std()[1])
    median = float(np.median(scores.own))
    spread = 1.4826 * float(np.median(np.abs(np.array(scores.own) - median)))
    low = median - _SPREADS * spread
    draft = PairSummary(len(scores.keys), median, low, chance, std, wide, True)
    # The best of many turns or shifts is higher by chance: subtract that.
    columns = zip(scores.own, scores.turn_score, scores.shift_score, strict=True)
    best = [max(own, turn - std, shift - 4 * wide) for own, turn, shift in columns]
    telling = std > 0 and draft.deviations(float(np.median(best))) >= CERTAIN
    return dataclasses.replace(draft, telling=telling)


def _fits_others(
    listing: Listing,
    pair: Pair,
    scores: PairScores,
    summary: PairSummary,
    features_of: FeaturesOf,
) -> bool:
    """Whether most samples fit another sample although few fit their own."""
    partners = find_partners(listing, pair, scores.keys[:_MAX_SHUFFLED], features_of)
    best = [score for _, score in partners.values()]
    return bool(best) and summary.deviations(float(np.median(best))) >= CERTAIN + 1


def find_partners(
    listing: Listing, names: tuple[str, str], keys: list[str], features_of: FeaturesOf
) -> dict[str, tuple[str, float]]:
    """Find for each sample the one whose second modality best fits its first, and the score."""
    if len(keys) < 2:
        return {}
    modalities = {modality.name: modality for modality in listing.modalities}
    mine, theirs = (features_of(keys, modalities[name]) for name in names)
    known = [key for key in keys if key in mine and key in theirs]
    if len(known) < 2:
        return {}
    a, b = (np.stack([f[key] for key in known]).reshape(len(known), -1) for f in (mine, theirs))
    table = a @ b.T
    np.fill_diagonal(table, -1.0)
    best = table.argmax(axis=1)
    return {
        key: (known[j], float(table[i, j]))
        for i, (key, j) in enumerate(zip(known, best, strict=True))
    }

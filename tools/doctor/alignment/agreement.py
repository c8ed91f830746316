"""How well two modalities agree over a data set, and which samples belong together."""

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
"""Normalised features by name of the sample, each ``[3, side, side]``."""

# In standard deviations of pairs that do not belong together (docs/LOG.md: rendered rooms have at
# least 7.0 as paired): a pair above this belongs together.
CERTAIN = 5.0
_SPREADS = 4.0
_ENOUGH, _MAX_SHUFFLED = 90, 500


@dataclass(frozen=True)
class PairSummary:
    """How well two modalities agree over the data set; correlations of edges.

    Attributes:
        samples: Number compared.
        median: Of the samples as paired.
        low: Few true pairs are below, judged by how far the samples spread about the median.
        chance: Mean of what does not belong together.
        std: Its standard deviation.
        shift_std: That of correlations at far offsets, if it is larger.
        telling: Whether the pair can tell at all if samples belong together.
    """

    samples: int
    median: float
    low: float
    chance: float
    std: float
    shift_std: float
    telling: bool

    def deviations(self, score: float) -> float:
        """Standard deviations above chance."""
        return (score - self.chance) / max(self.std, 1e-6)

    def shift_deviations(self, score: float) -> float:
        """The same for the best of many offsets, where repeating patterns agree by chance."""
        return (score - self.chance) / max(self.shift_std, 1e-6)


def summarise_pairs(
    listing: Listing, pairs: Mapping[Pair, PairScores], features_of: FeaturesOf
) -> dict[Pair, PairSummary]:
    """How well each two modalities agree, whatever happened to the files.

    Args:
        listing: Files and rows.
        pairs: Scores by names of two modalities.
        features_of: Reads samples again, to see if a set is shuffled as a whole.
    """
    out = {}
    for pair, scores in pairs.items():
        if scores.keys:
            out[pair] = _summary(scores, scores.shuffled)
            if not out[pair].telling:
                # True pairs among the shuffled ones would raise what counts as chance.
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
    # The best of many turns or shifts is higher by chance, which is taken off.
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
    """Whether most samples fit another sample, though hardly any fits its own."""
    partners = find_partners(listing, pair, scores.keys[:_MAX_SHUFFLED], features_of)
    best = [score for _, score in partners.values()]
    return bool(best) and summary.deviations(float(np.median(best))) >= CERTAIN + 1


def find_partners(
    listing: Listing, names: tuple[str, str], keys: list[str], features_of: FeaturesOf
) -> dict[str, tuple[str, float]]:
    """For each doubtful sample the other one whose second modality fits its first best."""
    if len(keys) < 2:
        return {}
    rows = {row.name: row for row in listing.rows}
    mine, theirs = (features_of(keys, rows[name]) for name in names)
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

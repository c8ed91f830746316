"""Find misaligned samples, the file at fault, and what happened to it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from multimae.specs.modalities import Modality
from tools.doctor.alignment.agreement import CERTAIN, FeaturesOf, Pair, PairSummary, find_partners
from tools.doctor.alignment.edge_correlation import PairScores
from tools.doctor.alignment.edges import INVERSE
from tools.doctor.files.file_listing import Listing
from tools.doctor.findings import Finding

# A pair fewer standard deviations above chance than this is doubtful.
DOUBTFUL = 3.5
# By how much another explanation must beat the pair as stored.
_MARGIN, _WIDE_MARGIN, _SHIFT_MARGIN = 0.06, 0.15, 0.12
# Number of doubtful samples to search for partners.
_MAX_SEARCH = 2000


@dataclass(frozen=True)
class _Verdict:
    """Verdict on one sample and pair: whether it agrees, and the best other explanation."""

    own: float
    agrees: bool
    turn: str = ""
    shift: tuple[float, float] = (0.0, 0.0)
    score: float = -1.0

    def what(self, first: bool) -> str:
        """What happened to the second modality of the pair (or the first)."""
        if self.turn:
            return self.turn if first else INVERSE.get(self.turn, self.turn)
        x, y = (round(-100 * v if first else 100 * v) for v in self.shift)
        return f"shifted by {x:+d} % of the width and {y:+d} % of the height"


def find_misaligned(
    listing: Listing,
    pairs: Mapping[Pair, PairScores],
    summaries: Mapping[Pair, PairSummary],
    features_of: FeaturesOf,
) -> Iterator[Finding]:
    """Find samples whose modalities do not show the same view.

    Args:
        listing: Files and modalities.
        pairs: Scores by pair of modality names.
        summaries: Of the same pairs; see
            :func:`tools.doctor.alignment.agreement.summarise_pairs`.
        features_of: Reads samples again, to search partners of doubtful ones.
    """
    verdicts: dict[str, dict[Pair, _Verdict]] = defaultdict(dict)
    for pair, summary in summaries.items():
        if not summary.telling:
            yield _cannot_tell(pair, summary)
            continue
        for key, verdict in _judge(pairs[pair], summary):
            verdicts[key][pair] = verdict
    accused: dict[tuple[Pair, str], dict[str, _Verdict]] = defaultdict(dict)
    for key, by_pair in verdicts.items():
        if not all(v.agrees for v in by_pair.values()):
            culprit = _culprit(by_pair, listing.modalities)
            against = (p for p in by_pair if culprit in p and not by_pair[p].agrees)
            witness = max(against, key=lambda p: summaries[p].median)
            accused[witness, culprit][key] = by_pair[witness]
    for (pair, culprit), found in accused.items():
        yield from _explain(listing, pair, culprit, found, summaries[pair], features_of)


def _judge(scores: PairScores, summary: PairSummary) -> Iterator[tuple[str, _Verdict]]:
    for i, key in enumerate(scores.keys):
        own, turn, shift = scores.own[i], scores.turn_score[i], scores.shift_score[i]
        doubtful = summary.deviations(own) < DOUBTFUL or own < summary.low
        verdict = _Verdict(own, not doubtful)
        if summary.deviations(turn) >= CERTAIN and turn > own + _MARGIN:
            verdict = _Verdict(own, False, turn=scores.turn[i], score=turn)
        # The best of a thousand offsets is high by chance: require a value typical of true pairs.
        bar = (summary.median + summary.chance) / 2
        least = max(own + _SHIFT_MARGIN, verdict.score, bar)
        if shift > least and summary.shift_deviations(shift) >= CERTAIN:
            verdict = _Verdict(own, False, shift=scores.shift[i], score=shift)
        yield key, verdict


def _culprit(by_pair: Mapping[Pair, _Verdict], modalities: Sequence[Modality]) -> str:
    """The modality that most disagreeing pairs share.

    Ties: the one with the lowest correlations, then one that is not a photo.
    """
    blame: dict[str, int] = defaultdict(int)
    total: dict[str, float] = defaultdict(float)
    for pair, verdict in by_pair.items():
        for name in pair:
            blame[name] += -1 if verdict.agrees else 1
            total[name] += verdict.own
    order = {modality.name: (not modality.is_photo, -i) for i, modality in enumerate(modalities)}
    return max(blame, key=lambda name: (blame[name], -total[name], order[name]))


def _explain(
    listing: Listing,
    pair: Pair,
    culprit: str,
    found: Mapping[str, _Verdict],
    summary: PairSummary,
    features_of: FeaturesOf,
) -> Iterator[Finding]:
    """Findings about samples in which ``culprit`` does not fit the other modality of the pair."""
    first = pair[0] == culprit
    other = pair[1] if first else pair[0]
    partners = find_partners(listing, (culprit, other), list(found)[:_MAX_SEARCH], features_of)
    for key, verdict in found.items():
        path = listing.files[culprit][key].path
        against = listing.files[other][key].path
        partner, score = partners.get(key, ("", -1.0))
        how = f"edge correlation {summary.deviations(verdict.own):.1f} deviations above chance"
        hardly = summary.deviations(verdict.own) < DOUBTFUL
        fits = score > max(verdict.own + (_MARGIN if hardly else _WIDE_MARGIN), verdict.score)
        if fits and summary.deviations(score) >= CERTAIN:
            text = (
                f"does not fit {against} but fits {listing.files[other][partner].path} "
                f"({how}, {summary.deviations(score):.1f} with the latter): swapped or shuffled. "
                "Rename."
            )
            yield Finding("error", "swapped", text, path, culprit, key)
        elif verdict.score >= 0:
            text = (
                f"is {verdict.what(first)} relative to {against} ({how}, "
                f"{summary.deviations(verdict.score):.1f} when corrected). Regenerate it."
            )
            code = verdict.turn.split()[0] if verdict.turn else "shifted"
            yield Finding("error", code, text, path, culprit, key)
        elif hardly and verdict.own < summary.low:
            text = (
                f"barely fits {against} ({how}; the median sample is at "
                f"{summary.deviations(summary.median):.1f}). Inspect both."
            )
            yield Finding("warning", "misaligned", text, path, culprit, key)


def _cannot_tell(pair: Pair, summary: PairSummary) -> Finding:
    a, b = pair
    text = (
        f"edges of '{a}' and '{b}' correlate weakly in this data set (median "
        f"{summary.median:.2f}, chance {summary.chance:.2f} +- {summary.std:.2f}): swapped or "
        "shifted files cannot be detected. If they should agree, inspect the samples below."
    )
    return Finding("info", "registration", text, modality=f"{a}, {b}")

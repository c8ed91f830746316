"""Which samples are not aligned, which of their files is to blame, and what happened to it."""

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

# In standard deviations above chance: a pair below this hardly belongs together.
DOUBTFUL = 3.5
# By how much another explanation must beat the pair as it is.
_MARGIN, _WIDE_MARGIN, _SHIFT_MARGIN = 0.06, 0.15, 0.12
# Partners are sought among so many doubtful samples.
_MAX_SEARCH = 2000


@dataclass(frozen=True)
class _Verdict:
    """One sample of one pair: whether it agrees, and the best other explanation."""

    own: float
    agrees: bool
    turn: str = ""
    shift: tuple[float, float] = (0.0, 0.0)
    score: float = -1.0

    def what(self, first: bool) -> str:
        """What happened to the second modality of the pair, or to the first."""
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
    """Findings about samples whose modalities do not show the same view.

    Args:
        listing: Files and rows.
        pairs: Scores by names of two modalities.
        summaries: Of the same pairs, see :func:`tools.doctor.alignment.agreement.summarise_pairs`.
        features_of: Reads samples again, to look for the partners of doubtful ones.
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
            culprit = _culprit(by_pair, listing.rows)
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
        # The best of a thousand offsets is high by chance: it must look like a true pair.
        bar = (summary.median + summary.chance) / 2
        least = max(own + _SHIFT_MARGIN, verdict.score, bar)
        if shift > least and summary.shift_deviations(shift) >= CERTAIN:
            verdict = _Verdict(own, False, shift=scores.shift[i], score=shift)
        yield key, verdict


def _culprit(by_pair: Mapping[Pair, _Verdict], rows: Sequence[Modality]) -> str:
    """The modality that most disagreeing pairs share.

    Between equals the one whose correlations are least, then one that is not a photograph.
    """
    blame: dict[str, int] = defaultdict(int)
    total: dict[str, float] = defaultdict(float)
    for pair, verdict in by_pair.items():
        for name in pair:
            blame[name] += -1 if verdict.agrees else 1
            total[name] += verdict.own
    order = {row.name: (not row.is_photo, -i) for i, row in enumerate(rows)}
    return max(blame, key=lambda name: (blame[name], -total[name], order[name]))


def _explain(
    listing: Listing,
    pair: Pair,
    culprit: str,
    found: Mapping[str, _Verdict],
    summary: PairSummary,
    features_of: FeaturesOf,
) -> Iterator[Finding]:
    """Findings about one modality of a pair that does not fit the other in some samples."""
    first = pair[0] == culprit
    other = pair[1] if first else pair[0]
    partners = find_partners(listing, (culprit, other), list(found)[:_MAX_SEARCH], features_of)
    for key, verdict in found.items():
        path = listing.files[culprit][key].path
        against = listing.files[other][key].path
        partner, score = partners.get(key, ("", -1.0))
        how = f"edges as paired {summary.deviations(verdict.own):.1f} deviations above chance"
        hardly = summary.deviations(verdict.own) < DOUBTFUL
        fits = score > max(verdict.own + (_MARGIN if hardly else _WIDE_MARGIN), verdict.score)
        if fits and summary.deviations(score) >= CERTAIN:
            text = (
                f"does not fit {against} but fits {listing.files[other][partner].path} "
                f"({how}, with that {summary.deviations(score):.1f}): swapped or shuffled. Rename."
            )
            yield Finding("error", "swapped", text, path, culprit, key)
        elif verdict.score >= 0:
            text = (
                f"is {verdict.what(first)} against {against} ({how}, put right "
                f"{summary.deviations(verdict.score):.1f}). Make it again from the same view."
            )
            code = verdict.turn.split()[0] if verdict.turn else "shifted"
            yield Finding("error", code, text, path, culprit, key)
        elif hardly and verdict.own < summary.low:
            text = (
                f"hardly fits {against} ({how}; the median sample is at "
                f"{summary.deviations(summary.median):.1f}). Look at both."
            )
            yield Finding("warning", "misaligned", text, path, culprit, key)


def _cannot_tell(pair: Pair, summary: PairSummary) -> Finding:
    a, b = pair
    text = (
        f"edges of '{a}' and '{b}' agree little in general (median correlation "
        f"{summary.median:.2f}, chance {summary.chance:.2f} +- {summary.std:.2f}): swapped or "
        "shifted files would not show. If they should agree, look at the samples below."
    )
    return Finding("info", "registration", text)

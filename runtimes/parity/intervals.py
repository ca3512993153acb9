"""Confidence limits of what is counted over images: a share of them, and the difference of two shares."""

from __future__ import annotations

import math
from statistics import NormalDist

TWO_SIDED_95 = 1.959963984540054
HALVINGS = 60
"""Of an interval at most 2 wide: the limit is then exact to the last bit."""
MOST_LOOKS, SMALLEST_LOOK = 4, 250


def one_sided_z(confidence: float, looks: int = 1) -> float:
    """How many standard errors a one-sided limit lies away from what was measured.

    Args:
        confidence: of the limit, above 0.5 and below 1.
        looks: how many times the limit may be asked for as images come in. Each has an equal part of the risk
            (Bonferroni), so that the risk of all together is at most 1 - `confidence`.
    """
    return NormalDist().inv_cdf(1 - (1 - confidence) / looks)


def look_sizes(most: int) -> tuple[int, ...]:
    """After how many images in all to look whether they decide: 250, 500, 1000 and 2000 of 2000; 300 of 300.

    Each look has twice the images of the one before it, and none fewer than 250: about as many as four looks need to
    show that 98 % agree, where all do.
    """
    halves = (most // 2**place for place in range(MOST_LOOKS))
    return tuple(sorted({most, *(size for size in halves if size >= SMALLEST_LOOK)}))


def wilson_interval(successes: int, trials: int, z: float = TWO_SIDED_95) -> tuple[float, float]:
    """Wilson's interval of a proportion, 0..1 (1927; Brown, Cai and DasGupta 2001, section 3.1.1); 95 % by default."""
    share = successes / trials
    centre = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    return max(0.0, centre - half), min(1.0, centre + half)


def tango_interval(lost: int, gained: int, trials: int, z: float = TWO_SIDED_95) -> tuple[float, float]:
    """The interval, -1..1, of a fall: the share of images that only the first of two classifiers has right minus the
    share that only the second has right, both asked about the same images; 95 % by default.

    It is Tango's score interval for paired proportions (Tango 1998, Statistics in Medicine 17, 891-908): all falls
    that the score test, with the discordant share at its maximum likelihood under the fall, does not reject.

    Args:
        lost: images that only the first has right.
        gained: images that only the second has right.
        trials: all images.
    """
    return -_tango_upper(gained, lost, trials, z), _tango_upper(lost, gained, trials, z)


def images_to_decide_share(successes: int, trials: int, bound: float, z: float) -> int | None:
    """How many images in all put Wilson's limits on one side of `bound`, if the share stays as it is; None if none do.

    Wilson's limits are the shares that the score test does not reject, and its statistic grows with the root of the
    images.
    """
    share = successes / trials
    if share == bound:
        return None
    return max(trials + 1, math.ceil(z * z * bound * (1 - bound) / (share - bound) ** 2))


def images_to_decide_fall(lost: int, gained: int, trials: int, bound: float, z: float) -> int | None:
    """How many images in all put Tango's limits on one side of `bound`, if the shares stay what they are; None if none
    do."""
    score = _tango_score(lost, gained, trials, bound)
    return max(trials + 1, math.ceil(trials * (z / score) ** 2)) if score else None


def _tango_upper(lost: int, gained: int, trials: int, z: float) -> float:
    low, high = (lost - gained) / trials, 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if _tango_score(lost, gained, trials, middle) >= -z:
            low = middle
        else:
            high = middle
    return low


def _tango_score(lost: int, gained: int, trials: int, fall: float) -> float:
    """Tango's test statistic of the hypothesis that the fall is `fall`; it decreases as `fall` grows."""
    a, b, c = 2 * trials, -lost - gained + (2 * trials - lost + gained) * fall, -gained * fall * (1 - fall)
    only_second = (math.sqrt(max(0.0, b * b - 4 * a * c)) - b) / (2 * a)
    variance = trials * (2 * only_second + fall * (1 - fall))
    difference = lost - gained - trials * fall
    if variance > 0:
        return difference / math.sqrt(variance)
    return math.copysign(math.inf, difference) if difference else 0.0

"""Confidence limits of shares and of paired differences, held to published values."""

from __future__ import annotations

import pytest

from runtimes.parity.intervals import one_sided_z, tango_interval, wilson_interval


def test_tango_interval_is_the_published_one() -> None:
    """Bentur et al. 2009, airway hyper-responsiveness, 1 and 7 discordant of 21, as worked out by Fagerland, Lydersen
    and Laake 2014, Statistics in Medicine 33, table IV: -0.517 to -0.026."""
    low, high = tango_interval(1, 7, 21)
    assert (round(low, 3), round(high, 3)) == (-0.517, -0.026)


@pytest.mark.parametrize(("lost", "gained", "trials"), [(12, 2, 50), (40, 20, 160), (3, 0, 2000), (7, 7, 256)])
def test_tango_limits_are_roots_of_the_quartic(lost: int, gained: int, trials: int) -> None:
    """Yang, Sun and Hardin 2013 (Statistics in Medicine 32, 1336-1342) showed that the limits solve a quartic."""
    g = 1.959963984540054**2
    n, d, s = trials, lost - gained, lost + gained
    quartic = [
        n**2 * (n / g + 1) ** 2,
        -n * d * (n / g + 1) * (4 * n / g + 1),
        2 * n * d**2 * (3 * n / g + 2) / g - n**2 * (s / g + 1),
        n * d * (2 * s / g + 1) - d**3 * (4 * n / g + 1) / g,
        d**2 * (d**2 / g - s) / g,
    ]
    for limit in tango_interval(lost, gained, trials):
        terms = [factor * limit**power for factor, power in zip(quartic, (4, 3, 2, 1, 0), strict=True)]
        assert abs(sum(terms)) < 1e-9 * max(map(abs, terms))


def test_tango_interval_without_a_discordant_pair() -> None:
    """Then it is that of a share of which none was seen: z^2 / (n + z^2)."""
    z = one_sided_z(0.95)
    assert tango_interval(0, 0, 300, z)[1] == pytest.approx(z * z / (300 + z * z), rel=1e-9)
    assert tango_interval(0, 0, 300, z)[0] == -tango_interval(0, 0, 300, z)[1]


def test_tango_interval_of_all_images_lost() -> None:
    assert tango_interval(20, 0, 20)[1] == pytest.approx(1.0)
    assert tango_interval(0, 20, 20)[0] == pytest.approx(-1.0)


def test_wilson_interval_is_the_published_one() -> None:
    """81 of 263 (Newcombe 1998, Statistics in Medicine 17, 857-872, table I): 0.2553 to 0.3662; 0 of 20: to 0.1611."""
    assert [round(limit, 4) for limit in wilson_interval(81, 263)] == [0.2553, 0.3662]
    assert [round(limit, 4) for limit in wilson_interval(0, 20)] == [0.0, 0.1611]


def test_one_sided_z_shares_the_risk_between_looks() -> None:
    assert one_sided_z(0.95) == pytest.approx(1.6448536269514722)
    assert one_sided_z(0.95, 4) == pytest.approx(one_sided_z(0.9875))

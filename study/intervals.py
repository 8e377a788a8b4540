"""Means, deviations and Student's t intervals."""

import math
import statistics

# 0.975 quantile of Student's t for 1, 2, … degrees of freedom
T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)


def t_975(freedom):
    """The 0.975 quantile of Student's t: from a table, or its expansion in 1/freedom above 15 degrees of freedom."""
    if freedom <= len(T_975):
        return T_975[freedom - 1]
    z = statistics.NormalDist().inv_cdf(0.975)
    first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3


def mean(values):
    """The mean, or None without values."""
    return statistics.mean(values) if values else None


def deviation(values):
    """The sample standard deviation, or None for fewer than two values."""
    return statistics.stdev(values) if len(values) > 1 else None


def half_width(values):
    """Half the width of the 95 % confidence interval of the mean, t s / √n, or None for fewer than two values."""
    n = len(values)
    return t_975(n - 1) * deviation(values) / math.sqrt(n) if n > 1 else None


def in_prediction_interval(number, values):
    """Whether `number` lies in the 95 % prediction interval of `values`, mean ± t s √(1 + 1/n); None if unknown."""
    n = len(values)
    if number is None or n < 2:
        return None
    return abs(number - mean(values)) <= t_975(n - 1) * deviation(values) * math.sqrt(1 + 1 / n)

"""Fit the polynomials of csrc/core/noise.h (needs numpy and scipy).

A standard normal is drawn from p in (0, 1/2) as z = -quantile(p). With x = 1 - 2p and w = -ln(4p(1 - p)), the ratio
z / x is a smooth function of w near the center and of sqrt(w) in the tail, so two short polynomials and one logarithm
replace the quantile (the idea of M. Giles, "Approximating the erfinv function", GPU Computing Gems, 2010). The
logarithm of the mantissa m in [sqrt(1/2), sqrt(2)) is (m - 1) times a third polynomial in m - 1.

    python tools/fit_normal.py        # prints the coefficients, highest power first
"""

from typing import Any

import numpy as np
from numpy.polynomial import chebyshev
from scipy.special import ndtri

Array = np.ndarray[Any, np.dtype[np.float64]]
SPLIT = 5.0  # w below: center; above: tail
SMALLEST_P = 2.0**-25


def minimax(x: Array, y: Array, weight: Array, degree: int) -> tuple[Array, float]:
    """Fit a polynomial by weighted Chebyshev fits with Lawson's reweighting.

    Returns:
        Power-series coefficients, highest power first, and the largest weighted error.
    """
    low, high = x.min(), x.max()
    t = 2 * (x - low) / (high - low) - 1
    lawson = np.ones_like(x)
    for _ in range(60):
        c = chebyshev.chebfit(t, y, degree, w=weight * np.sqrt(lawson))
        error = np.abs(weight * (chebyshev.chebval(t, c) - y))
        lawson *= error / error.max() + 1e-3
        lawson /= lawson.mean()
    power = np.polynomial.Polynomial(chebyshev.cheb2poly(c))(
        np.polynomial.Polynomial([-2 * low / (high - low) - 1, 2 / (high - low)])
    )
    return np.asarray(power.coef[::-1], np.float64), float(error.max())


def main() -> None:
    """Fit and print the polynomials."""

    # p for evenly spaced w: 4p(1 - p) = e^-w
    def points(w: Array) -> tuple[Array, Array]:
        root = np.sqrt(-np.expm1(-w))  # = 1 - 2p
        p = np.exp(-w) / (2 * (1 + root))
        x = root
        return x, np.where(x > 1e-8, -ndtri(p) / np.where(x > 1e-8, x, 1), np.sqrt(np.pi / 2))

    nodes = (1 - np.cos(np.pi * (np.arange(4000) + 0.5) / 4000)) / 2
    w = SPLIT * nodes
    x, f = points(w)
    center, e_center = minimax(w - 2.5, f, np.maximum(x, 1e-3), 8)
    w_end = -np.log(4 * SMALLEST_P * (1 - SMALLEST_P)) + 1e-6
    w = SPLIT + (w_end - SPLIT) * nodes
    x, f = points(w)
    tail, e_tail = minimax(np.sqrt(w) - 3.0, f, x, 8)
    m = np.sqrt(0.5) + (np.sqrt(2) - np.sqrt(0.5)) * nodes
    d = m - 1
    ratio = np.where(np.abs(d) > 1e-9, np.log1p(d) / np.where(np.abs(d) > 1e-9, d, 1), 1)
    logarithm, e_log = minimax(d, ratio, np.abs(d), 9)
    for name, c, e in (("center", center, e_center), ("tail", tail, e_tail), ("log", logarithm, e_log)):
        print(name, f"largest error {e:.2e}")
        print("   ", ", ".join(f"{v:.9e}f" for v in c))


if __name__ == "__main__":
    main()

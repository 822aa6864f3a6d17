"""The complementary error function, which the array API standard lacks."""

from __future__ import annotations

from gpunn._typing import Array, Namespace

# Chebyshev coefficients, in u = 2 t - 1, of log(erfc(z) e^(z^2) / t) with t = 1 / (1 + z / 2),
# a smooth function on 0 < t <= 1. Computed by interpolation at 60 Chebyshev nodes in 60 decimal
# digits; the omitted terms are below 3e-17.
_COEFFICIENTS = (
    -0.6513268598908547171,
    0.6419697923564902603,
    0.019476473204185836312,
    -0.0095615147868086316419,
    -0.0009465953444820368663,
    0.00036683949785276145187,
    0.000042523324806907771645,
    -0.000020278578112534243154,
    -1.6242900046470255135e-6,
    1.3036558355805232018e-6,
    1.5626441722066143178e-8,
    -8.5238095914926542525e-8,
    6.5290544390988514964e-9,
    5.0593434955514689418e-9,
    -9.9136415649303308674e-10,
    -2.2736512229318358557e-10,
    9.646791102015526802e-11,
    2.3940380830391147447e-12,
    -6.8860275264975533984e-12,
    8.9448792730907257167e-13,
    3.1309213993429580783e-13,
    -1.1270822361367252366e-13,
    3.8109052551892320552e-16,
    7.1060976136092369878e-15,
    -1.5230282014571043043e-15,
    -9.4574945712912340005e-17,
    1.2102371892242789923e-16,
)
_SINGLE = 13  # terms that matter in float32


def erfc(xp: Namespace, x: Array) -> Array:
    r"""Return the complementary error function.

    :math:`\mathrm{erfc}(x) = \frac{2}{\sqrt\pi} \int_x^\infty e^{-s^2} ds`.

    Parameters
    ----------
    xp : namespace
        The functions of the array API standard.
    x : array
        Of any shape, float32 or float64.

    Returns
    -------
    array
        With a relative error of at most 4 + 2 x^2 rounding units for positive x, where results are
        small, and an absolute error of at most 4 units for negative x; these bounds allow for an
        exponential that is 2 units off, as CUDA's may be.

    Notes
    -----
    With z = abs(x) and t = 1 / (1 + z / 2), erfc(z) = t exp(P(t) - z^2), where P is a Chebyshev
    series, summed by Clenshaw's recurrence; erfc(-z) = 2 - erfc(z).
    """
    terms = _COEFFICIENTS if xp.finfo(x.dtype).bits > 32 else _COEFFICIENTS[:_SINGLE]
    z = xp.abs(x)
    t = 1.0 / (1.0 + 0.5 * z)
    u2 = 4.0 * t - 2.0
    newer, older = 0.0 * t, 0.0 * t
    for coefficient in reversed(terms[1:]):
        newer, older = u2 * newer - older + coefficient, newer
    series = 0.5 * u2 * newer - older + terms[0]
    tail = t * xp.exp(series - z * z)
    return xp.where(x < 0.0, 2.0 - tail, tail)

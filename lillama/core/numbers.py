"""Write numbers for people: the one home of how many digits a figure has."""

from collections.abc import Callable

ABSENT = "-"
GIBI = 2**30


def plain_number(value: float) -> str:
    """Write a measured figure: two decimals, none of whole numbers and from 1,000 on, more where two would say 0.

    >>> plain_number(12.0), plain_number(57.123), plain_number(8622.4), plain_number(0.01234)
    ('12', '57.12', '8,622', '0.0123')
    """
    if float(value).is_integer() or abs(value) >= 1000:
        return f"{value:,.0f}"
    return two_decimals(value) if abs(value) >= 0.1 else f"{value:.3g}"


def two_decimals(value: float) -> str:
    """Write a perplexity or a score: ``1,854.20``."""
    return f"{value:,.2f}"


def three_digits(value: float) -> str:
    """Write a speed, a ratio or a time: three digits, none after the point from 100 on; whole numbers as they are.

    >>> three_digits(1.2345), three_digits(123.4), three_digits(10000)
    ('1.23', '123', '10,000')
    """
    return f"{value:,.0f}" if isinstance(value, int) or abs(value) >= 100 else f"{value:.3g}"


def with_error(value: float, stderr: float | None) -> str:
    """Write a figure with its standard error: ``57.12 ± 0.41``; by itself where there is none."""
    return two_decimals(value) if stderr is None else f"{two_decimals(value)} ± {stderr:.2f}"


def with_span(middle: float, low: float, high: float, write: Callable[[float], str] = three_digits) -> str:
    """Write a figure with its lowest and highest in brackets: ``1.16 (1.04 to 1.23)``."""
    return f"{write(middle)} ({write(low)} to {write(high)})"


def gibibytes(amount: float) -> str:
    """Write bytes as GiB."""
    return f"{three_digits(amount / GIBI)} GiB"


def or_absent(value: float | None, write: Callable[[float], str] = three_digits) -> str:
    """Write a figure, or a dash where there is none."""
    return ABSENT if value is None else write(value)

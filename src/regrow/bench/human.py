"""Numbers as people read them: four significant digits, k and M, percent."""

MISSING = "–"
NEARLY_ZERO = 1e-7
PREFIXES = ("", "k", "M", "G", "T", "P")


def count(value: float | None) -> str:
    """A count with an SI prefix.

    >>> count(64), count(18_464), count(999_960), count(2_350_000_000)
    ('64', '18.46k', '1M', '2.35G')
    """
    if value is None:
        return MISSING
    # Rounded first, so that 999,960 becomes 1M and not 1000k.
    rounded = float(f"{value:.4g}")
    power = 0
    while abs(rounded) >= 1000 and power < len(PREFIXES) - 1:
        rounded /= 1000
        power += 1
    return f"{rounded:.4g}{PREFIXES[power]}"


def percent(fraction: float | None) -> str:
    """A fraction as percent.

    >>> percent(0.98437)
    '98.44 %'
    """
    return MISSING if fraction is None else f"{100 * fraction:.2f} %"


def loss(value: float | None) -> str:
    """A loss with four significant digits.

    >>> loss(0.0321), loss(2.302585)
    ('0.03210', '2.303')
    """
    return MISSING if value is None else f"{value:#.4g}"


def change(difference: float | None) -> str:
    """A signed difference; zero is plain 0, and what is far below a loss's digits is only nearly that.

    >>> change(0.25), change(-0.125), change(0.0), change(3e-9)
    ('+0.250', '−0.125', '0', '≈ 0')
    """
    if difference is None:
        return MISSING
    if 0 < abs(difference) < NEARLY_ZERO:
        return "≈ 0"
    return f"{difference:+#.3g}".replace("-", "−", 1) if difference else "0"


def plural(num: int, noun: str) -> str:
    """A number with its noun.

    >>> plural(1, "run"), plural(4, "edit")
    ('1 run', '4 edits')
    """
    return f"{num:,} {noun}{'' if num == 1 else 's'}"

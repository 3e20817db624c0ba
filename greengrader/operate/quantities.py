"""Quantities for people: in the unit that needs no zeros, to three digits."""

KILO = 1e3
KIBI = 1024.0

ENERGY = ((1.0, "kWh"), (1e-3, "Wh"), (1e-6, "mWh"), (1e-9, "µWh"))  # in kWh
MASS = ((KILO, "kg"), (1.0, "g"), (1e-3, "mg"), (1e-6, "µg"))  # in g
BYTES = ((KIBI**3, "GiB"), (KIBI**2, "MiB"), (KIBI, "KiB"), (1.0, "bytes"))
UNKNOWN = "not measured"


def energy(kwh: float | None) -> str:
    """Energy given in kWh."""
    return _scaled(kwh, ENERGY)


def emissions(grams: float | None) -> str:
    """Emissions given in gCO2e."""
    return UNKNOWN if grams is None else f"{_scaled(grams, MASS)} CO2e"


def memory(size_bytes: int | None) -> str:
    """An amount of memory or of data given in bytes."""
    return _scaled(size_bytes, BYTES)


def duration(seconds: float | None) -> str:
    """A duration given in seconds."""
    if seconds is None:
        return UNKNOWN
    if seconds < 120:
        return f"{_three_digits(seconds)} s"
    minutes, rest_s = divmod(round(seconds), 60)
    return f"{minutes} min {rest_s} s"


def points(score: float | None) -> str:
    """A score, with as many digits as it has."""
    return "none" if score is None else f"{score:.10g}"


def _scaled(value: float | None, units: tuple[tuple[float, str], ...]) -> str:
    """`value` in the largest unit that it fills; the units are sorted, largest first."""
    if value is None:
        return UNKNOWN
    for size, unit in units:
        # 0.9995 of a unit is 1.00 of it to three digits
        if abs(value) >= 0.9995 * size:
            return f"{_three_digits(value / size)} {unit}"
    size, unit = units[-1]
    return f"{_three_digits(value / size)} {unit}"


def _three_digits(number: float) -> str:
    return f"{number:,.0f}" if abs(number) >= 999.5 else f"{number:.3g}"

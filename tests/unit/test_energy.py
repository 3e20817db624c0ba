"""Energy and emissions, against figures worked out by hand from the formula of the reference, §3:

E [kWh] = (cpu_s × (W_max − W_min) + wall_s × cpus × W_min + wall_s × memory_GB × 0.392) / 3.6e6 × PUE
"""

from math import isclose

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greengrader.carbon.energy import Watts, emissions_g, energy_kwh

CASCADE_LAKE = Watts(0.64, 3.80, "Cloud Carbon Footprint")
MILAN = Watts(0.45, 1.87, "Cloud Carbon Footprint")
GB = 10**9


@pytest.mark.parametrize(
    ("cpu_s", "wall_s", "cpus", "memory_bytes", "watts", "pue", "joules"),
    [
        (10.0, 20.0, 0.5, 1 * GB, CASCADE_LAKE, 1.0, 45.84),  # 10 × 3.16 + 20 × 0.5 × 0.64 + 20 × 0.392
        (10.0, 20.0, 0.5, 1 * GB, CASCADE_LAKE, 1.5, 68.76),
        (600.0, 600.0, 1.0, 2 * GB, MILAN, 1.0, 1592.4),  # 600 × 1.42 + 600 × 0.45 + 600 × 0.784
        (0.0, 100.0, 2.0, 0, CASCADE_LAKE, 1.0, 128.0),  # asleep: 100 × 2 × 0.64
        (0.0, 0.0, 2.0, 8 * GB, CASCADE_LAKE, 1.2, 0.0),
        (5.0, 5.0, 1.0, 0, Watts(2.0, 2.0, "constant"), 1.0, 10.0),
        (0.2, 0.4, 0.5, 805_306_368, CASCADE_LAKE, 1.0, 0.8862720385024),  # 0.632 + 0.128 + 0.4 × 0.805306368 × 0.392
    ],
)
def test_energy_by_hand(
    cpu_s: float, wall_s: float, cpus: float, memory_bytes: int, watts: Watts, pue: float, joules: float
) -> None:
    kwh = energy_kwh(cpu_s=cpu_s, wall_s=wall_s, cpus=cpus, memory_bytes=memory_bytes, watts=watts, pue=pue)
    assert isclose(kwh, joules / 3.6e6, rel_tol=1e-9, abs_tol=1e-18)


def test_one_core_for_an_hour_at_one_kilowatt_is_a_kilowatt_hour() -> None:
    watts = Watts(0.0, 1000.0, "a heater")
    assert energy_kwh(cpu_s=3600, wall_s=3600, cpus=1, memory_bytes=0, watts=watts, pue=1) == 1.0


def test_emissions_by_hand() -> None:
    assert emissions_g(0.0, 480.0) == 0.0
    assert emissions_g(0.5, 480.0) == 240.0
    assert isclose(emissions_g(45.84 / 3.6e6, 480.0), 0.006112)  # the first run above, at home


AMOUNTS = st.floats(0, 1e6)


@given(AMOUNTS, AMOUNTS, st.floats(0, 64), st.integers(0, 2**40), st.floats(1, 3))
def test_energy_is_never_negative_and_grows_with_the_site(
    cpu_s: float, wall_s: float, cpus: float, memory_bytes: int, pue: float
) -> None:
    def energy(pue: float) -> float:
        return energy_kwh(cpu_s=cpu_s, wall_s=wall_s, cpus=cpus, memory_bytes=memory_bytes, watts=CASCADE_LAKE, pue=pue)

    assert energy(pue) >= energy(1.0) >= 0
    assert isclose(energy(pue), pue * energy(1.0), rel_tol=1e-12)

"""Energy and emissions of one container run: arithmetic only, every input stored beside the result."""

from dataclasses import dataclass

MEMORY_WATTS_PER_GB = 0.392  # Cloud Carbon Footprint's published coefficient, W per GB of memory
JOULES_PER_KWH = 3.6e6


@dataclass(frozen=True)
class Watts:
    """Power of one core, W: idle and under full load; `source` says where the figures come from."""

    idle: float
    full: float
    source: str


def energy_kwh(
    *, cpu_s: float, wall_s: float, cpus: float, memory_bytes: int, watts: Watts, pue: float
) -> float:  # fmt: skip
    """Electricity of a run, kWh, by Cloud Carbon Footprint's linear model:

    (cpu_s × (full − idle) + wall_s × cpus × idle + wall_s × memory_GB × 0.392 W) / 3.6e6 × PUE,

    where cpu_s is the CPU time used on all cores, cpus and memory_bytes what was reserved, in cores and bytes.
    """
    joules = (
        cpu_s * (watts.full - watts.idle)
        + wall_s * cpus * watts.idle
        + wall_s * memory_bytes / 1e9 * MEMORY_WATTS_PER_GB
    )
    return joules / JOULES_PER_KWH * pue


def emissions_g(kwh: float, intensity_gco2e_per_kwh: float) -> float:
    """Emissions of so much electricity, gCO2e."""
    return kwh * intensity_gco2e_per_kwh

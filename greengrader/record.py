"""What a finished run becomes in the table `results`: grade, parity, energy and emissions, with all they were made
from."""

from typing import Any

from greengrader import results
from greengrader.carbon.energy import Watts, emissions_g, energy_kwh
from greengrader.config import Settings
from greengrader.db import ResultContext
from greengrader.messages import Message, Result


def row_of(message: Result, node: str, context: ResultContext, settings: Settings) -> dict[str, Any]:
    """The columns of `results` for what a container did on `node`."""
    grade = results.grade(
        message.parts.get("results"),
        timed_out=message.timed_out,
        oom_killed=message.oom_killed,
        timeout_s=message.timeout_s,
        problem=message.results_problem,
    )
    facts = message.model_dump(
        mode="json",
        include={"exit_status", "oom_killed", "started_at", "finished_at", "wall_s", "cpu_s", "peak_memory_bytes",
                 "usage_method", "cpus", "memory_bytes", "image_built_s"},
    )  # fmt: skip
    return {
        **facts,
        **emissions_of(message, context, settings),
        "outcome": grade.outcome,
        "score": grade.score,
        "max_score": grade.max_score,
        "parity": results.parity(grade.score, context.gradescope_score),
        "results": grade.results,
        "raw_results": grade.raw,
        "problem": grade.problem,
        "output": text_of(message, "output"),
        "warnings": [*context.autograder_warnings, *message.warnings],
        "region": context.region,
        "zone": context.zone,
        "node": node,
        "node_ip": context.node_ip,
    }


def emissions_of(message: Result, context: ResultContext, settings: Settings) -> dict[str, Any]:
    """Energy and emissions with all that they were worked out from; no figure where CPU time is unknown."""
    watts = Watts(settings.default_watts_min, settings.default_watts_max, "default of the settings")
    if context.watts_min is not None and context.watts_max is not None:
        watts = Watts(context.watts_min, context.watts_max, "registered by the worker")
    inputs: dict[str, Any] = {
        "watts_min": watts.idle,
        "watts_max": watts.full,
        "pue": settings.pue,
        "energy_method": f"cpu time, watts {watts.source}",
    }
    if message.cpu_s is None:
        return inputs
    energy = energy_kwh(
        cpu_s=message.cpu_s, wall_s=message.wall_s, cpus=message.cpus, memory_bytes=message.memory_bytes,
        watts=watts, pue=settings.pue,
    )  # fmt: skip
    emissions = emissions_g(energy, settings.home_intensity_gco2e_per_kwh)
    return {
        **inputs,
        "energy_usage": energy,
        "carbon_intensity": settings.home_intensity_gco2e_per_kwh,
        "carbon_source": "setting GREENGRADER_HOME_INTENSITY_GCO2E_PER_KWH",
        "carbon_emission_from_compute": emissions,
        "carbon_emission": emissions,
    }


def text_of(message: Message, part: str) -> str:
    """A part as text that Postgres can hold, its head and tail where it is long."""
    return results.cap_text(results.clean(message.parts.get(part, b"").decode("utf-8", "replace")))

"""How green each region of the cluster is: a fixed answer from the settings, as long as no source of it is
configured."""

from greengrader.config import Settings


def scores(settings: Settings) -> dict[str, float]:
    """{"region.zone" or "region": score, lower is greener}."""
    return dict(settings.kube_region_scores)

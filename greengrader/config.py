"""Typed settings: environment over `.env` over default, read once in `main` and passed on.

Every key is GREENGRADER_<FIELD>; a secret may stand in a file named by GREENGRADER_<FIELD>_FILE. All bad keys are
reported together, in one SettingsError. An empty value is none: the default counts.
"""

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from dotenv import dotenv_values
from pydantic import AfterValidator, Field, Json, PositiveFloat, PositiveInt, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from greengrader.errors import SettingsError
from greengrader.limits import MEBIBYTE, Limits, PayloadLimits

PREFIX = "GREENGRADER_"
SECRETS = ("database_url", "mqtt_url", "submit_password")
# Set by the snippet and by the tests; no settings of the daemons.
NOT_SETTINGS = ("GREENGRADER_REQUIRE",)
MQTT_MAX_BYTES = 268_435_455  # the largest remaining length that MQTT can say

WorkerName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$")]

# Names that Kubernetes takes: a label's value is a name, or empty; most objects are called like a host.
ObjectName = Annotated[str, Field(pattern=r"^([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?)?$")]
LabelValue = Annotated[str, Field(pattern=r"^([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?$")]


# The fields of a toleration, as Kubernetes spells them, and what each may be; None: anything.
TOLERATION: dict[str, tuple[str, ...] | None] = {
    "key": None,
    "operator": ("Exists", "Equal"),
    "value": None,
    "effect": ("NoSchedule", "PreferNoSchedule", "NoExecute"),
    "tolerationSeconds": None,
}


def _known_fields(toleration: dict[str, str | int]) -> dict[str, str | int]:
    for name, value in toleration.items():
        if name not in TOLERATION:
            raise ValueError(f"a toleration has {', '.join(TOLERATION)}; not {name}")
        allowed = TOLERATION[name]
        if allowed is not None and value not in allowed:
            raise ValueError(f"the {name} of a toleration is {' or '.join(allowed)}; not {value}")
    return toleration


Toleration = Annotated[dict[str, str | int], AfterValidator(_known_fields)]


class Settings(BaseSettings):
    """Every setting with its default; the field's description is its line in `.env.example` and in the README."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what `load` collected: it knows the keys' names, which the error messages need."""
        return (init_settings,)

    # where the services are
    database_url: str = Field("", description="Postgres of the hub: postgresql://user:password@host:port/database")
    mqtt_url: str = Field("", description="broker and account: mqtt://user:password@host:port, mqtts:// for TLS")
    submit_host: str = Field("", description="broker as Gradescope reaches it, for the snippet")
    submit_port: int = Field(1883, description="its port")
    submit_user: str = Field("", description="the account in the snippet: may publish submissions, nothing else")
    submit_password: str = Field("", description="its password; readable by student code")
    state_dir: Path = Field(Path(".greengrader"), description="spool, outbox and caches of the daemons on this machine")
    log_level: str = Field("INFO", pattern="^(DEBUG|INFO|WARNING|ERROR)$", description="DEBUG, INFO, WARNING or ERROR")

    # patience
    outage_limit_s: PositiveFloat = Field(600, description="a daemon leaves (exit 3) when a service is away for longer")
    lease_s: PositiveFloat = Field(30, description="a worker that is not heard of for so long loses its run")
    heartbeat_s: PositiveFloat = Field(5, description="a worker says so often that it lives")
    worker_silent_s: PositiveFloat = Field(15, description="a worker that is silent for so long gets no new runs")
    max_attempts: PositiveInt = Field(3, description="a run is abandoned after so many faults of ours")

    stop_grace_s: float = Field(30, ge=0, description="a worker that is told to stop lets its runs go on for so long")

    # limits at the door
    max_payload_bytes: int = Field(MQTT_MAX_BYTES, gt=0, le=MQTT_MAX_BYTES, description="larger payloads are rejected")
    max_payload_entries: PositiveInt = Field(PayloadLimits.entries, description="files and folders in a payload")
    max_unpacked_bytes: PositiveInt = Field(PayloadLimits.unpacked_bytes, description="a payload's size when unpacked")
    max_compression_ratio: PositiveFloat = Field(PayloadLimits.ratio, description="unpacked to packed, above 10 MiB")
    max_path_depth: PositiveInt = Field(PayloadLimits.depth, description="folders within folders in a payload")

    # the container of a run; each assignment may override the first four
    cpus: PositiveFloat = Field(Limits.cpus, description="cores a run may use")
    memory_bytes: int = Field(Limits.memory_bytes, ge=16 * MEBIBYTE, description="memory of a run, swap included")
    timeout_s: PositiveFloat = Field(Limits.timeout_s, description="wall-clock limit of run_autograder")
    network: bool = Field(Limits.network, description="may a run reach the network")
    pids: PositiveInt = Field(Limits.pids, description="processes and threads of a run")
    open_files: PositiveInt = Field(Limits.open_files, description="open files of one process")
    disk_bytes: PositiveInt = Field(Limits.disk_bytes, description="what a run may write to its file system")
    log_bytes: PositiveInt = Field(Limits.log_bytes, description="what is kept of a run's printed output")
    results_bytes: PositiveInt = Field(Limits.results_bytes, description="largest results.json")
    container_runtime: str = Field("", description="runtime of the engine for runs, e.g. runsc; empty: its default")

    # images
    base_image: str = Field("gradescope/autograder-base:ubuntu-22.04", description="base of every autograder's image")
    registry: str = Field("", description="host:port/path that images are pushed to and pulled from; empty: none")
    image_build_timeout_s: PositiveFloat = Field(1200, description="for setup.sh and all")
    image_pull_timeout_s: PositiveFloat = Field(600, description="for one pull or push")
    image_cache_bytes: PositiveInt = Field(20 * 1024 * MEBIBYTE, description="unused images beyond this are removed")

    # Kubernetes
    kube_namespace: ObjectName = Field("greengrader", min_length=1, description="namespace of the pods")
    kube_podspec: Path | None = Field(None, description="a podspec of your own; default: the project's pod.yaml")
    kube_service_account: ObjectName = Field(
        "", description="service account of the pods, whose token they never get; empty: the namespace's default"
    )
    kube_image_pull_secret: ObjectName = Field("", description="name of the Secret that nodes pull the images with")
    kube_priority_class: ObjectName = Field("", description="priority class of the pods")
    kube_tolerations: Json[list[Toleration]] = Field(
        [],
        validate_default=False,  # the default is no JSON
        description='taints that pods put up with, e.g. [{"key": "nautilus.io/reservation", "operator": "Exists"}]',
    )
    kube_node_selector: Json[dict[str, LabelValue]] = Field(
        {}, validate_default=False, description='labels that a node must have, e.g. {"kubernetes.io/arch": "amd64"}'
    )
    kube_affinity: Literal["preferred", "required"] = Field(
        "preferred", description="may a pod run elsewhere when the greenest region is full: preferred or required"
    )
    kube_region_scores: Json[dict[str, float]] = Field(
        {},
        validate_default=False,
        description='how green a region.zone is, lower is greener, e.g. {"us-west.ucsc": 112, "us-east.mghpcc": 301}',
    )
    kube_queue: LabelValue = Field("", description="Kueue's local queue for the pods; empty: no Kueue")
    kube_cpu_request: float = Field(
        1.0, gt=0, le=1, description="share of its CPU limit that a pod reserves; below 1, a node takes more pods"
    )
    kube_grace_s: PositiveInt = Field(
        600, description="on top of timeout_s a pod may take so long to pull its images, to fetch and to upload"
    )
    kube_unschedulable_s: float = Field(
        300, ge=0, description="a pod that finds no node waits so long, then any region will do"
    )
    max_pods: PositiveInt = Field(100, description="pods in flight at a time")

    # what pods and hub exchange
    rclone_remote: str = Field(
        "greengrader-app:",
        pattern=r"^[^\s:,][^\s:,]*:\S*$",
        description="rclone remote, with a path in it if need be: remote:bucket/path",
    )
    rclone_config: Path | None = Field(None, description="rclone's configuration on this machine; default: its own")
    rclone_timeout_s: PositiveFloat = Field(120, description="for one transfer from or to this machine")
    rclone_secret: ObjectName = Field(
        "greengrader-rclone", min_length=1, description="Secret with the pods' rclone.conf, in their namespace"
    )
    rclone_image: str = Field(
        "rclone/rclone:1.68", pattern=r"^\S+$", description="image with rclone, sh and tar; deploy/rclone.Dockerfile"
    )

    # the worker on this machine
    worker_name: WorkerName | None = Field(None, description="also its broker account; default: the host's name")
    slots: PositiveInt = Field(
        default_factory=lambda: os.cpu_count() or 1,
        description="runs at a time on this worker; default: one for each core",
    )
    min_free_disk_bytes: int = Field(2 * 1024 * MEBIBYTE, ge=0, description="below this the worker takes no jobs")
    default_watts_min: float = Field(0.74, ge=0, description="W per core, idle, where a worker states none")
    default_watts_max: float = Field(3.50, ge=0, description="W per core, full load, where a worker states none")
    pue: float = Field(1.0, ge=1, description="power usage effectiveness of the site; 1: the machines alone")
    home_intensity_gco2e_per_kwh: float = Field(
        480.0, ge=0, description="carbon intensity at home, as long as no source of intensity is configured"
    )

    def payload_limits(self) -> PayloadLimits:
        """The limits that a payload is checked against."""
        return PayloadLimits(
            entries=self.max_payload_entries,
            unpacked_bytes=self.max_unpacked_bytes,
            ratio=self.max_compression_ratio,
            depth=self.max_path_depth,
        )

    def run_limits(self) -> Limits:
        """The limits of a run where the assignment says nothing else."""
        return Limits(
            timeout_s=self.timeout_s,
            cpus=self.cpus,
            memory_bytes=self.memory_bytes,
            pids=self.pids,
            open_files=self.open_files,
            disk_bytes=self.disk_bytes,
            network=self.network,
            log_bytes=self.log_bytes,
            results_bytes=self.results_bytes,
            runtime=self.container_runtime or None,
        )

    def required(self, field: str) -> str:
        """The value of a setting that has no default; SettingsError where it is not set."""
        value = str(getattr(self, field) or "")
        if not value:
            raise SettingsError(
                f"{PREFIX}{field.upper()} is not set; `. .greengrader/env` after `make up`, or see README"
            )
        return value

    def masked(self) -> dict[str, Any]:
        """{KEY: value} of every setting in force, secrets replaced by ***."""
        shown = {}
        for name, value in self.model_dump(mode="json").items():
            if name in SECRETS and value:
                value = _mask(value) if name.endswith("_url") else "***"
            shown[PREFIX + name.upper()] = value
        return shown


def load(environment: Mapping[str, str] | None = None, dotenv: Path = Path(".env")) -> Settings:
    """Settings in force; SettingsError names every bad key at once."""
    given = _together(dotenv_values(dotenv), os.environ if environment is None else environment)
    values: dict[str, str] = {}
    problems: list[str] = []
    for key, value in sorted(given.items()):
        if not key.startswith(PREFIX) or key in NOT_SETTINGS:
            continue
        field = key.removeprefix(PREFIX).lower()
        if field.endswith("_file") and field.removesuffix("_file") in SECRETS:
            try:
                values[field.removesuffix("_file")] = Path(value).read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError) as error:
                problems.append(f"{key}: cannot read {value}: {error}")
        elif field in Settings.model_fields:
            if value:
                values.setdefault(field, value)
        else:
            near = difflib.get_close_matches(field, Settings.model_fields, n=1)
            problems.append(f"{key}: unknown setting" + (f", is {PREFIX}{near[0].upper()} meant?" if near else ""))
    try:
        settings = Settings(**values)  # type: ignore[arg-type]  # pydantic turns the texts into the fields' types
    except ValidationError as error:
        for fault in error.errors():
            field = str(fault["loc"][0])
            shown = "***" if field in SECRETS else repr(fault["input"])
            problems.append(f"{PREFIX}{field.upper()}={shown}: {fault['msg']}")
    if problems:
        raise SettingsError("; ".join(problems))
    return settings


def _together(dotenv: Mapping[str, str | None], environment: Mapping[str, str]) -> dict[str, str]:
    """All keys of both; a secret of the environment replaces that of `.env`, whichever of them stands in a file."""
    given = {key: value for key, value in dotenv.items() if value is not None}
    for key in environment:
        given.pop(key.removesuffix("_FILE") if key.endswith("_FILE") else f"{key}_FILE", None)
    return given | dict(environment)


def _mask(value: str) -> str:
    """The URL without its password, which may hold any character; nothing of a text that may hide one elsewhere."""
    scheme, mark, rest = value.partition("://")
    account, at, place = rest.rpartition("@")
    user, colon, _ = account.partition(":")
    if not mark or not scheme.isalnum() or "?" in place:
        return "***"
    return f"{scheme}://{user}{':***' if colon else ''}{at}{place}"

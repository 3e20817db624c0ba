"""A podspec as it stands in a file: read, checked, and filled in. Pure but for reading the file.

A scalar that is a placeholder as a whole, ${name}, becomes the value of that name, with the value's type. A list in the
place of an item is spliced in. A placeholder without a value takes its field with it. Nothing is ever replaced inside a
text, so scripts may use ${…} for themselves. PLACEHOLDERS says what there is.

Which field and which line is wrong is told here as far as it can be told without a cluster; what an API server finds,
`explain` puts a line to.
"""

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import yaml

from greengrader.errors import SettingsError

FETCH, UPLOAD, AUTOGRADER = "fetch", "upload", "autograder"

PLACEHOLDERS = {
    "image": "the autograder's image",
    "command": "what starts the autograder; a list",
    "timeout_s": "wall-clock limit of run_autograder, for `timeout`",
    "deadline_s": "that of the pod: GREENGRADER_KUBE_GRACE_S more; a number",
    "cpus": "cores, as 500m",
    "cpus_requested": "GREENGRADER_KUBE_CPU_REQUEST of them",
    "memory_bytes": "memory, as a quantity",
    "disk_bytes": "what a run may write",
    "disk_requested": "what a node must have of that",
    "open_files": "open files of one process, for `ulimit -n`",
    "file_blocks": "the largest file in units of 512 bytes, for `ulimit -f`",
    "network": "may the run reach the network: true or false, as a text",
    "runtime_class": "GREENGRADER_CONTAINER_RUNTIME",
    "storage": "where the run's files and results lie, as rclone names it",
    "files_bytes": "the largest submission, unpacked",
    "return_bytes": "the longest results.tar",
    "rclone_image": "GREENGRADER_RCLONE_IMAGE",
    "rclone_secret": "GREENGRADER_RCLONE_SECRET",
    "service_account": "GREENGRADER_KUBE_SERVICE_ACCOUNT",
    "image_pull_secrets": "a list of GREENGRADER_KUBE_IMAGE_PULL_SECRET",
    "priority_class": "GREENGRADER_KUBE_PRIORITY_CLASS",
    "tolerations": "GREENGRADER_KUBE_TOLERATIONS, a list",
    "node_selector": "GREENGRADER_KUBE_NODE_SELECTOR, a mapping",
    "affinity": "node affinity for the run's region and zone, a mapping",
    "queue": "GREENGRADER_KUBE_QUEUE",
}

_PLACEHOLDER = re.compile(r"\$\{(\w+)\}")
# What an API server says of a field: spec.containers[1].image, or as its decoder does v1.Pod.Spec: v1.PodSpec.Volumes:
_FIELD = re.compile(r"\b(?:spec|metadata)(?:\.[\w/-]+|\[\d+\])+")
_GO_FIELD = re.compile(r"\bv1\.\w+\.([A-Z]\w*)")


class PodspecInvalid(SettingsError):
    """A podspec that cannot be used; the text names file, line and field."""


@dataclass(frozen=True)
class PodTemplate:
    """A checked podspec with its placeholders."""

    source: str  # what the file is called in messages
    tree: dict[str, Any] = field(repr=False)
    lines: dict[str, int] = field(repr=False)  # {"spec.containers[0].image": line, counted from 1}

    @classmethod
    def read(cls, path: Path) -> Self:
        """The podspec in a file; PodspecInvalid where it is none, or cannot be read."""
        try:
            return cls.parse(path.read_text(encoding="utf-8"), path.name)
        except OSError as error:
            raise PodspecInvalid(f"{path} cannot be read: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise PodspecInvalid(f"{path} is not UTF-8: {error.reason} at byte {error.start}") from error

    @classmethod
    def parse(cls, text: str, source: str = "pod.yaml") -> Self:
        """The podspec in a text."""
        reader = _Reader(text, source)
        template = cls(source, reader.read(), reader.lines)
        template._check()
        return template

    def filled(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """A copy of the tree with `values` in the place of their placeholders."""
        tree: dict[str, Any] = _filled(self.tree, values)
        return tree

    def explain(self, message: str) -> str:
        """What an API server says about the pod, with the line of the field that it names in front of it."""
        named = [match[0] for match in _FIELD.finditer(message)]
        go_names = [name[0].lower() + name[1:] for name in _GO_FIELD.findall(message)]
        if not named and go_names:
            # The decoder does not say which of several containers it means.
            wanted = ".".join(go_names)
            named = [path for path in self.lines if re.sub(r"\[\d+\]", "", path) == wanted]
        lines = sorted({self._line(path) for path in named})
        if not lines:
            return message
        which = f"line {lines[0]}" if len(lines) == 1 else f"lines {', '.join(map(str, lines))}"
        return f"{self.source}, {which}: {message.partition(', error found in #')[0]}"

    def invalid(self, path: str, what: str) -> PodspecInvalid:
        """The fault at a field, or at the next one around it that the file has."""
        return PodspecInvalid(f"{self.source}, line {self._line(path)}: {path} {what}")

    def _line(self, path: str) -> int:
        while path and path not in self.lines:
            path = path[: max(path.rfind("."), path.rfind("["), 0)]
        return self.lines.get(path, 1)

    def _check(self) -> None:
        """Raises PodspecInvalid unless a run can be put into this pod, and be found and graded there."""
        for name, value in (("apiVersion", "v1"), ("kind", "Pod")):
            if self.tree.get(name) != value:
                raise self.invalid(name, f"has to be {value}")
        self._check_metadata(self.tree.get("metadata") or {})
        spec = self.tree.get("spec")
        if not isinstance(spec, dict):
            raise self.invalid("spec", "has to be a mapping")
        if spec.get("restartPolicy") != "Never":
            raise self.invalid("spec.restartPolicy", "has to be Never: a run is graded once")
        self._check_containers("initContainers", (FETCH,))
        self._check_containers("containers", (UPLOAD, AUTOGRADER))
        for path, name in _placeholders(self.tree):
            if name not in PLACEHOLDERS:
                near = difflib.get_close_matches(name, PLACEHOLDERS, n=1)
                meant = f"is ${{{near[0]}}} meant?" if near else f"there are {', '.join(PLACEHOLDERS)}"
                raise self.invalid(path, f"has the unknown placeholder ${{{name}}}; {meant}")

    def _check_metadata(self, metadata: Any) -> None:
        if not isinstance(metadata, dict):
            raise self.invalid("metadata", "has to be a mapping")
        for name in ("labels", "annotations"):
            texts = metadata.get(name) or {}
            if not isinstance(texts, dict):
                raise self.invalid(f"metadata.{name}", "has to be a mapping")
            for key, text in texts.items():
                if not isinstance(text, str):
                    raise self.invalid(f"metadata.{name}.{key}", "has to be a text; put it in quotes")

    def _check_containers(self, kind: str, required: tuple[str, ...]) -> None:
        path = f"spec.{kind}"
        containers = self.tree["spec"].get(kind)
        if not isinstance(containers, list) or not containers:
            raise self.invalid(path, f"has to be a list with {' and '.join(required)}")
        names: list[str] = []
        for index, container in enumerate(containers):
            name = container.get("name") if isinstance(container, dict) else None
            if not isinstance(name, str):
                raise self.invalid(f"{path}[{index}]", "has no name")
            if name in names:
                raise self.invalid(f"{path}[{index}].name", f"is {name}, as that of another container")
            if not isinstance(container.get("image"), str):
                raise self.invalid(f"{path}[{index}]", f"({name}) has no image")
            names.append(name)
        for name in required:
            if name not in names:
                raise self.invalid(path, f"has no container {name}, which every run needs (see the project's pod.yaml)")


class _Reader:
    """Turns YAML into plain data, and notes on which line each field stands."""

    def __init__(self, text: str, source: str) -> None:
        self._text, self._source = text, source
        self.lines: dict[str, int] = {}
        self._open: list[yaml.Node] = []

    def read(self) -> dict[str, Any]:
        try:
            self._loader = yaml.SafeLoader(self._text)
            node = self._loader.get_single_node()
            tree = None if node is None else self._value(node, "")
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line = mark.line + 1 if mark else 1
            what = ", ".join(filter(None, (error.context, error.problem)))
            raise PodspecInvalid(f"{self._source}, line {line}: no YAML: {what}") from error
        except yaml.reader.ReaderError as error:
            raise PodspecInvalid(f"{self._source}: no YAML: {error.reason} at character {error.position}") from error
        except RecursionError as error:
            raise PodspecInvalid(f"{self._source}: its fields are nested too deep") from error
        if not isinstance(tree, dict):
            raise PodspecInvalid(f"{self._source}, line 1: a podspec begins with `apiVersion: v1` and `kind: Pod`")
        return tree

    def _value(self, node: yaml.Node, path: str) -> Any:
        self.lines.setdefault(path, node.start_mark.line + 1)
        if node in self._open:
            raise self._fault(node, f"{path} contains itself")
        self._open.append(node)
        try:
            if isinstance(node, yaml.MappingNode):
                return self._mapping(node, path)
            if isinstance(node, yaml.SequenceNode):
                return [self._value(item, f"{path}[{index}]") for index, item in enumerate(node.value)]
            value = self._loader.construct_object(node)
            # What is no JSON (a date) is a text to Kubernetes.
            return value if value is None or isinstance(value, str | int | float) else node.value
        finally:
            self._open.pop()

    def _mapping(self, node: yaml.MappingNode, path: str) -> dict[str, Any]:
        own = [key for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        seen: set[str] = set()
        for key in own:
            if not isinstance(key, yaml.ScalarNode):
                raise self._fault(key, f"{path or 'the top'} has a key that is no text")
            if key.value in seen:
                raise self._fault(key, f"{_joined(path, key.value)} stands there twice")
            seen.add(key.value)
        self._loader.flatten_mapping(node)  # merges (<<) come first, so that own keys win
        mapping = {}
        for key, value in node.value:
            here = _joined(path, key.value)
            self.lines[here] = key.start_mark.line + 1
            mapping[key.value] = self._value(value, here)
        return mapping

    def _fault(self, node: yaml.Node, what: str) -> PodspecInvalid:
        return PodspecInvalid(f"{self._source}, line {node.start_mark.line + 1}: {what}")


def _filled(value: Any, known: Mapping[str, Any]) -> Any:
    if isinstance(value, dict):
        fields = {key: _filled(item, known) for key, item in value.items()}
        return {key: item for key, item in fields.items() if item is not None or value[key] is None}
    if isinstance(value, list):
        items: list[Any] = []
        for item in value:
            filled = _filled(item, known)
            if isinstance(filled, list) and isinstance(item, str):
                items += filled
            elif filled is not None or item is None:
                items.append(filled)
        return items
    placeholder = _PLACEHOLDER.fullmatch(value) if isinstance(value, str) else None
    return known[placeholder[1]] if placeholder else value


def _placeholders(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Where placeholders stand, and their names."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _placeholders(item, _joined(path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _placeholders(item, f"{path}[{index}]")
    elif isinstance(value, str) and (placeholder := _PLACEHOLDER.fullmatch(value)):
        yield path, placeholder[1]


def _joined(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key

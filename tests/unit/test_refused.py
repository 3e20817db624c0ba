"""What an API server refuses, in our words. The answers are those of v1.20.2, unless a test says otherwise."""

import json
from typing import Any

import pytest

from greengrader.errors import ServiceUnavailable
from greengrader.kube.refused import (
    AlreadyExists,
    ClusterRefused,
    ClusterUnavailable,
    Forbidden,
    NotThere,
    PodInvalid,
    QuotaExceeded,
    Unauthorized,
    VersionGone,
    refusal,
)


def status(code: int, reason: str, message: str, **details: Any) -> bytes:
    said = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message}
    return json.dumps(said | {"reason": reason, "details": details, "code": code}).encode()


RBAC = (
    'pods is forbidden: User "system:serviceaccount:gg:runner" cannot create resource "pods" in API group "" in the '
    'namespace "gg"'
)
QUOTA = 'pods "greengrader-7-1" is forbidden: exceeded quota: pods, requested: pods=1, used: pods=2, limited: pods=2'


@pytest.mark.parametrize(
    ("code", "reason", "message", "verb", "kind", "words"),
    [
        (401, "Unauthorized", "Unauthorized", "get", Unauthorized, ["does not accept our credentials"]),
        (
            403,
            "Forbidden",
            RBAC,
            "create",
            Forbidden,
            ["account system:serviceaccount:gg:runner may not `create` `pods` in namespace gg"],
        ),
        (403, "Forbidden", QUOTA, "create", QuotaExceeded, ["the quota of namespace gg is full", "limited: pods=2"]),
        (
            403,
            "Forbidden",
            'pods "p" is forbidden: failed quota: q: must specify limits.cpu',
            "create",
            ClusterRefused,
            ["must specify limits.cpu"],
        ),
        (
            403,
            "Forbidden",
            'pods "p" is forbidden: violates PodSecurity "restricted:latest": runAsNonRoot != true',
            "create",
            ClusterRefused,
            ["violates PodSecurity"],
        ),
        (404, "NotFound", 'namespaces "gg" not found', "create", NotThere, ['namespaces "gg" not found']),
        (409, "AlreadyExists", 'pods "p" already exists', "create", AlreadyExists, ['pods "p" already exists']),
        (
            409,
            "Conflict",
            'Operation cannot be fulfilled on resourcequotas "q": the object has been modified',
            "create",
            ClusterUnavailable,
            ["to be tried again"],
        ),
        (409, "Conflict", "the UID in the precondition does not match", "delete", ClusterRefused, ["precondition"]),
        (410, "Expired", "too old resource version: 1 (7)", "watch", VersionGone, ["too old"]),
        (429, "TooManyRequests", "too many requests", "list", ClusterUnavailable, ["could not list pods"]),
        (500, "InternalError", "failed calling webhook", "create", ClusterUnavailable, ["failed calling webhook"]),
        (503, "ServiceUnavailable", "apiserver is shutting down", "get", ClusterUnavailable, ["shutting down"]),
        (405, "MethodNotAllowed", "not supported", "delete", ClusterRefused, ["refused to delete pods"]),
        (400, "BadRequest", 'container "a" in pod "p" is waiting to start', "get", ClusterRefused, ["is waiting"]),
    ],
)
def test_each_refusal(code: int, reason: str, message: str, verb: str, kind: type[Exception], words: list[str]) -> None:
    error = refusal(code, status(code, reason, message), verb, "pods", "namespace gg")
    assert type(error) is kind
    for word in words:
        assert word in str(error)
    if isinstance(error, ClusterRefused):
        assert error.status == code


def test_what_may_pass_is_a_service_that_is_away() -> None:
    assert issubclass(ClusterUnavailable, ServiceUnavailable)
    assert not issubclass(QuotaExceeded, ServiceUnavailable)


def test_a_pod_that_is_none_names_its_fields() -> None:
    message = 'Pod "p" is invalid: spec.containers[0].image: Required value'
    causes = [{"reason": "FieldValueRequired", "message": "Required value", "field": "spec.containers[0].image"}]
    error = refusal(422, status(422, "Invalid", message, causes=causes), "create", "pods", "namespace gg")
    assert isinstance(error, PodInvalid)
    assert (error.fields, str(error)) == (("spec.containers[0].image",), message)


def test_a_pod_that_cannot_even_be_decoded() -> None:
    message = 'Pod in version "v1" cannot be handled as a Pod: v1.Pod.Spec: v1.PodSpec.Volumes: []v1.Volume: decode'
    error = refusal(400, status(400, "BadRequest", message), "create", "pods", "namespace gg")
    assert isinstance(error, PodInvalid)
    assert (error.fields, "v1.PodSpec.Volumes" in str(error)) == ((), True)


@pytest.mark.parametrize("body", [b"", b"<html>Bad Gateway</html>", b"[]", b'"text"', b"\xff\xfe", b'{"kind": "Pod"}'])
def test_a_proxy_may_answer_in_its_own_words(body: bytes) -> None:
    error = refusal(502, body, "list", "pods", "namespace gg")
    assert type(error) is ClusterUnavailable
    assert "could not list pods in namespace gg now" in str(error)
    assert len(str(refusal(502, body + b"x" * 100_000, "list", "pods", "gg"))) < 1200

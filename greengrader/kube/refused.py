"""What an API server refuses, in our words: from its status and its JSON to an exception. Pure."""

import json
import re
from typing import Any

from greengrader.errors import GreenGraderError, ServiceUnavailable

MAX_TEXT_CHARS = 1000


class ClusterUnavailable(ServiceUnavailable):
    """The API server does not answer, or not now; the same call may succeed later."""


class ClusterRefused(GreenGraderError):
    """The API server answered with an error; `status` is HTTP's."""

    exit_code = 3

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status


class Unauthorized(ClusterRefused):
    """The cluster does not know who we are: the credentials are missing, wrong or too old."""


class Forbidden(ClusterRefused):
    """The account may not do this; the text names verb and resource."""


class QuotaExceeded(ClusterRefused):
    """The namespace's quota is used up; the same call may succeed when something has ended."""


class NotThere(ClusterRefused):
    """The pod, or the whole namespace, does not exist."""


class AlreadyExists(ClusterRefused):
    """A pod of this name exists."""


class PodInvalid(ClusterRefused):
    """The pod is none that the cluster takes; the text, and `fields`, name what is wrong with it."""

    def __init__(self, text: str, status: int, fields: tuple[str, ...]) -> None:
        super().__init__(text, status)
        self.fields = fields


class VersionGone(ClusterRefused):
    """A resourceVersion or a page that the server no longer remembers: list again."""


def refusal(status: int, body: bytes, verb: str, resource: str, where: str) -> GreenGraderError:
    """The exception for an answer with an error; `verb` and `resource` are RBAC's, `where` completes "in …"."""
    said = _status_of(body)
    text = str(said.get("message") or body.decode("utf-8", "replace")).strip()[:MAX_TEXT_CHARS] or f"status {status}"
    reason = said.get("reason")
    if status == 401:
        return Unauthorized(f"the cluster does not accept our credentials: {text}", status)
    if status == 403:
        return _forbidden(text, verb, resource, where)
    if status == 404:
        return NotThere(f"there is no such thing to {verb} in {where}: {text}", status)
    if status == 409 and reason == "AlreadyExists":
        return AlreadyExists(text, status)
    if status == 409 and verb != "delete":  # creating: the quota's count changed meanwhile
        return ClusterUnavailable(f"{verb} {resource} in {where} met another change; to be tried again: {text}")
    if status == 410:
        return VersionGone(text, status)
    if status in (400, 422) and verb == "create":
        causes = (said.get("details") or {}).get("causes") or ()
        fields = tuple(str(cause["field"]) for cause in causes if cause.get("field"))
        return PodInvalid(text, status, fields)
    if status == 429 or status >= 500:
        return ClusterUnavailable(f"the cluster could not {verb} {resource} in {where} now: {text}")
    return ClusterRefused(f"the cluster refused to {verb} {resource} in {where}: {text}", status)


def _forbidden(text: str, verb: str, resource: str, where: str) -> ClusterRefused:
    if "exceeded quota" in text:
        what = text[text.index("exceeded quota") :]
        return QuotaExceeded(f"the quota of {where} is full: {what}", 403)
    # RBAC says so with the same status as every admission check does.
    if re.search(r'\bcannot \w+ resource\b|\bforbidden: User "', text):
        who = re.search(r'User "([^"]*)"', text)
        account = f"account {who[1]}" if who else "this account"
        return Forbidden(
            f"{account} may not `{verb}` `{resource}` in {where}; see deploy/kubernetes/ for its role", 403
        )
    return ClusterRefused(f"the cluster refused to {verb} {resource} in {where}: {text}", 403)


def _status_of(body: bytes) -> dict[str, Any]:
    """The Status object that the server sends, {} where it, or a proxy before it, sends something else."""
    try:
        said = json.loads(body)
    except ValueError:
        return {}
    return said if isinstance(said, dict) and said.get("kind") == "Status" else {}

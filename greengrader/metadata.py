"""submission_metadata.json to what GreenGrader needs of it; reference, section 3.

Only the ids are insisted on, because nothing can be stored without them. Anything else that is absent, null or odd
becomes None: Gradescope may change it, and no student should lose a grade over that. The file itself goes into the run
unchanged.
"""

import json
import math
import re
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from greengrader.errors import PayloadRejected
from greengrader.results import clean

MAX_ID = 2**63 - 1
"""The largest bigint of Postgres."""
MAX_TEXT_CHARS = 1000
MAX_USERS = 1000
MAX_DEPTH = 100
MAX_VALUES = 200_000
"""Megabytes of `{},{},{},…` would be hundreds of megabytes of Python objects."""

# To the end of the text where it is not closed, or each quote in it would be tried as another beginning.
_STRING = re.compile(r'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
# Escapes that Postgres refuses in jsonb, or halves of them; honest emoji match as well and are cleaned for nothing.
_UNSTORABLE_ESCAPE = re.compile(r"\\u(?:0000|[dD][89a-fA-F])")


def _id(value: object) -> int:
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,19}", value):
        value = int(value)
    if type(value) is not int:  # True is an int for isinstance
        raise ValueError("is not a whole number")
    if not 0 < value <= MAX_ID:
        raise ValueError(f"is not between 1 and {MAX_ID}")
    return value


def _id_or_none(value: object) -> int | None:
    try:
        return _id(value)
    except ValueError:
        return None


def _text(value: object) -> str | None:
    return clean(value[:MAX_TEXT_CHARS]) if isinstance(value, str) else None


def _number(value: object) -> float | None:
    """A number, also as a string: Gradescope writes "total_points": "10.0"."""
    try:
        number = float(value) if isinstance(value, str | int | float) and value is not True else math.nan
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _moment(value: object) -> datetime | None:
    try:
        moment = datetime.fromisoformat(value) if isinstance(value, str) else None
        return moment and (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def _true_or_false(value: object) -> bool | None:
    return value if isinstance(value, bool) else None


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _users(value: object) -> object:
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(user, dict) for user in value):
        raise ValueError("is not a list of users")
    if len(value) > MAX_USERS:
        raise ValueError(f"names more than {MAX_USERS:,} users")
    return value


Id = Annotated[int, BeforeValidator(_id)]
IdOrNone = Annotated[int | None, BeforeValidator(_id_or_none)]
Text = Annotated[str | None, BeforeValidator(_text)]
Number = Annotated[float | None, BeforeValidator(_number)]
Moment = Annotated[datetime | None, BeforeValidator(_moment)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class Assignment(_Part):
    """The assignment as Gradescope described it when the submission was graded there."""

    id: Id
    course_id: IdOrNone = None
    title: Text = None
    release_date: Moment = None
    due_date: Moment = None
    late_due_date: Moment = None
    total_points: Number = None
    group_submission: Annotated[bool | None, BeforeValidator(_true_or_false)] = None
    group_size: Number = None  # students at most; None: any number
    outline: Any = None  # a list of {id, type, title, parent_id, weight}, as it came but fit for jsonb


class User(_Part):
    """One of the students of a submission."""

    id: IdOrNone = None
    name: Text = None
    email: Text = None
    sid: Text = None  # the number that the university gave


class Metadata(_Part):
    """Who handed in what, and when (aware, UTC)."""

    id: Id
    assignment: Assignment
    created_at: Moment = None
    submission_method: Text = None  # upload, GitHub, Bitbucket
    users: Annotated[list[User], BeforeValidator(_users)] = []

    previous_submissions: Annotated[list[Any], BeforeValidator(_list)] = []

    @property
    def student_ids(self) -> list[int]:
        """Gradescope's ids of the students, several for a group."""
        return [user.id for user in self.users if user.id is not None]

    @property
    def student_names(self) -> list[str]:
        """Names of the students, as far as they are known."""
        return [user.name for user in self.users if user.name is not None]

    @property
    def student_emails(self) -> list[str]:
        """E-mail addresses of the students, as far as they are known."""
        return [user.email for user in self.users if user.email is not None]


def read_metadata(raw: bytes) -> tuple[Metadata, dict[str, Any]]:
    """What `raw` says, and all of it as an object that jsonb takes (no NUL, no lone surrogates, finite numbers)."""
    document = _parse(raw)
    try:
        return Metadata.model_validate(document), document
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(str(step) for step in first["loc"])
        wrong = {"missing": "is missing", "model_type": "is not an object"}.get(first["type"], first["msg"])
        raise PayloadRejected(f"submission_metadata.json: {where} {wrong.removeprefix('Value error, ')}.") from error


def _parse(raw: bytes) -> dict[str, Any]:
    text = raw.decode("utf-8-sig", "replace")
    # Counted roughly first, because strings full of commas are rare and cutting them out takes time.
    if _values(text) > MAX_VALUES and _values(_STRING.sub("", text)) > MAX_VALUES:
        raise PayloadRejected(f"submission_metadata.json holds more than {MAX_VALUES:,} values.")
    try:
        document = json.loads(text, parse_constant=lambda _: None, parse_float=_finite_or_none)
        if _UNSTORABLE_ESCAPE.search(text) or text.count("[") + text.count("{") > MAX_DEPTH:
            document = _storable(document, MAX_DEPTH)
    except RecursionError as error:
        raise PayloadRejected("submission_metadata.json is nested too deep.") from error
    except ValueError as error:
        at = f" (line {error.lineno}, column {error.colno})" if isinstance(error, json.JSONDecodeError) else ""
        raise PayloadRejected(f"submission_metadata.json is not valid JSON{at}.") from error
    if not isinstance(document, dict):
        raise PayloadRejected("submission_metadata.json does not hold a JSON object.")
    return document


def _values(text: str) -> int:
    return text.count("[") + text.count("{") + text.count(",")


def _finite_or_none(literal: str) -> float | None:
    number = float(literal)
    return number if math.isfinite(number) else None


def _storable(value: Any, levels: int) -> Any:
    """`value` with every string of it made storable; RecursionError beyond `levels`."""
    if not levels:
        raise RecursionError
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, list):
        return [_storable(item, levels - 1) for item in value]
    if isinstance(value, dict):
        return {clean(key): _storable(item, levels - 1) for key, item in value.items()}
    return value

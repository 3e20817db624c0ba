"""Our own faults. What a student's program does wrong is an outcome (results.py), never an exception."""


class GreenGraderError(Exception):
    """Root of every fault that we can name; its text is one line that says what to do next."""

    exit_code = 1


class SettingsError(GreenGraderError):
    """A setting is missing, unknown or malformed."""

    exit_code = 2


class ServiceUnavailable(GreenGraderError):
    """Postgres, the broker or the container engine does not answer; the same call may succeed later."""

    exit_code = 3


class SchemaMismatch(GreenGraderError):
    """The database holds another version of schema.sql than this program was written for."""

    exit_code = 4


class PayloadRejected(GreenGraderError):
    """A zip that cannot be taken; the text is the reason that a course assistant reads."""


class MessageInvalid(GreenGraderError):
    """Bytes on the wire that are none of messages.py's, or of another version."""


class NotFound(GreenGraderError):
    """Somebody asked for a submission, assignment, run or worker that does not exist."""


class AutograderMissing(GreenGraderError):
    """This worker has neither the image nor the source of an autograder; the hub has to send it."""

    def __init__(self, digest: str) -> None:
        super().__init__(f"the source of autograder {digest[:12]} is not on this worker")
        self.digest = digest


class AutograderBroken(GreenGraderError):
    """The image cannot be built from what the staff uploaded; trying again will not help."""

    def __init__(self, reason: str, build_log: str) -> None:
        super().__init__(reason)
        self.build_log = build_log


class SandboxError(GreenGraderError):
    """The container engine failed; the student's program is not to blame."""

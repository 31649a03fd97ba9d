"""Every error a person or a client can meet: one class each, with its HTTP status, its code and a hint."""

from __future__ import annotations


class RushError(Exception):
    """A problem stated as: what is wrong, the value, and (``hint``) what to do about it.

    ``code`` is for programs and never changes. ``field`` names what was given wrongly, where one thing was:
    an operation's argument, which the command line knows as an option and the API as a field.
    """

    status = 500
    code = "error"

    def __init__(self, message: str, hint: str = "", *, field: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.field = field

    def __str__(self) -> str:
        about = f"{self.field}: " if self.field else ""
        return f"{about}{self.message} {self.hint}".strip()


class BadRequest(RushError):
    """The request can't be understood."""

    status = 400
    code = "bad_request"


class Unauthorized(RushError):
    """The request carries no credentials, or wrong ones."""

    status = 401
    code = "unauthorized"


class Forbidden(RushError):
    """The request comes from where none is taken from, whatever credentials it carries."""

    status = 403
    code = "forbidden"


class NotJson(RushError):
    """The body is of a kind that is never read."""

    status = 415
    code = "not_json"


class NotFound(RushError):
    """What the request names does not exist."""

    status = 404
    code = "not_found"


class TooLarge(RushError):
    """The request or the image is over a configured limit."""

    status = 413
    code = "too_large"


class UnusableConfig(RushError):
    """The label config has nothing that Rush can predict."""

    status = 422
    code = "unusable_config"


class BadImage(RushError):
    """The image can't be read: corrupt, truncated, too large or no image at all."""

    status = 422
    code = "bad_image"


class NotReady(RushError):
    """What is asked for needs something that isn't there yet (labels, embeddings, a generation)."""

    status = 409
    code = "not_ready"


class LabelStudioError(RushError):
    """Label Studio answered with an error, or not at all."""

    status = 502
    code = "label_studio_error"


class Refused(LabelStudioError):
    """Label Studio took the request and refused what was in it: something else in it may be fine."""


class Unavailable(RushError):
    """Another process of ours has to answer, and does not."""

    status = 503
    code = "unavailable"


class StoreError(RushError):
    """Redis, the index or a file of ours can't be read or written."""

    status = 503
    code = "store_error"


class ServerError(RushError):
    """A server of ours on this machine did not start, died, or runs already."""

    status = 503
    code = "server_error"


class SimulationError(RushError):
    """A simulated run failed."""

    code = "simulation_error"

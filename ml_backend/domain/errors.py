"""Every error a person or a client can meet: one class each, with its HTTP status and the next step."""

from __future__ import annotations


class RushError(Exception):
    """A problem stated as: what is wrong, the value, and (``hint``) what to do about it."""

    status = 500

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()


class BadRequest(RushError):
    """The request can't be understood."""

    status = 400


class Unauthorized(RushError):
    """The request carries no credentials, or wrong ones."""

    status = 401


class NotFound(RushError):
    """What the request names does not exist."""

    status = 404


class TooLarge(RushError):
    """The request or the image is over a configured limit."""

    status = 413


class UnusableConfig(RushError):
    """The label config has nothing that Rush can predict."""

    status = 422


class BadImage(RushError):
    """The image can't be read: corrupt, truncated, too large or no image at all."""

    status = 422


class NotReady(RushError):
    """What is asked for needs something that isn't there yet (labels, embeddings, a generation)."""

    status = 409


class LabelStudioError(RushError):
    """Label Studio answered with an error, or not at all."""

    status = 502


class Unavailable(RushError):
    """Another process of ours has to answer, and does not."""

    status = 503


class StoreError(RushError):
    """Redis, the index or a file of ours can't be read or written."""

    status = 503


class SimulationError(RushError):
    """A simulated run failed."""

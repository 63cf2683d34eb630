"""The exceptions that cross a public boundary, each with a stable machine-readable code.

``code`` is part of the wire contract: it is what a handler, a metric or a client sees. Messages are for people: they
say what was wrong and, where there is something to do, what to do.
"""

from typing import ClassVar, Self

from afd_serve.results import Failure

__all__ = [
    "AfdError",
    "AttachError",
    "BackboneError",
    "BadAnswerError",
    "CheckpointError",
    "ClientClosedError",
    "ClientError",
    "ConfigError",
    "CorruptJpegError",
    "DeadlineExceededError",
    "DependencyError",
    "EmptyInputError",
    "ExportError",
    "InputError",
    "JpegError",
    "JpegTooLargeError",
    "NotAnImageError",
    "NotExplainableError",
    "OutputTooSmallError",
    "PackagingError",
    "PictureTooLargeError",
    "RequestRefusedError",
    "ServerUnavailableError",
    "ServingError",
    "TlsError",
    "TruncatedJpegError",
    "UnsupportedJpegError",
]


class AfdError(Exception):
    """Base of every error that ``afd_serve`` raises on purpose."""

    code: ClassVar[str] = "error"


class InputError(AfdError):
    """One picture cannot be used; its neighbours are unaffected."""

    code = "bad_input"


class EmptyInputError(InputError):
    """The item has no bytes."""

    code = "empty"


class NotAnImageError(InputError):
    """The bytes are in no picture format that can be read."""

    code = "not_an_image"


class PictureTooLargeError(InputError):
    """A non-JPEG picture passes a limit on bytes or pixels."""

    code = "too_large"


class JpegError(InputError):
    """A JPEG cannot be decoded; the message carries the codec's own words, and what to do where that is known."""

    code = "bad_jpeg"
    remedy: ClassVar[str] = ""

    def __str__(self) -> str:
        """What was wrong, and what to do."""
        words = super().__str__()
        return f"{words}; {self.remedy}" if self.remedy else words


class CorruptJpegError(JpegError):
    """The file violates the standard where no recovery is possible."""

    code = "corrupt_jpeg"
    remedy = "send an intact copy, or save the picture anew"


class TruncatedJpegError(JpegError):
    """The data ends before the picture does."""

    code = "truncated_jpeg"
    remedy = "send the whole file"


class UnsupportedJpegError(JpegError):
    """A valid process that this build cannot decode (lossless, 12-bit, hierarchical, ...)."""

    code = "unsupported_jpeg"
    remedy = "save it as a baseline or progressive JPEG of 8 bits"


class JpegTooLargeError(JpegError):
    """A limit on pixels, bytes, scans or memory is exceeded."""

    code = "too_large"


class OutputTooSmallError(AfdError, ValueError):
    """The memory that a caller gave for a picture cannot hold it. The message says how much it needs."""

    code = "output_too_small"


class ConfigError(AfdError):
    """A setting has a value that cannot work."""

    code = "bad_config"


class DependencyError(AfdError):
    """An optional package or system program is missing; the message says how to install it."""

    code = "missing_dependency"


class BackboneError(AfdError):
    """The classifier cannot be loaded or lacks something that AFD needs."""

    code = "bad_backbone"


class AttachError(BackboneError):
    """An attach site does not exist or cannot be used; the message names the candidates."""

    code = "bad_attach_site"


class CheckpointError(AfdError):
    """A checkpoint is missing, damaged or belongs to another model."""

    code = "bad_checkpoint"


class ExportError(AfdError):
    """The exported classifier does not agree with the one it was made from."""

    code = "bad_export"


class NotExplainableError(AfdError):
    """The model's files lack what an explanation needs; the message says what to do."""

    code = "not_supported"


class PackagingError(AfdError):
    """An archive or model repository cannot be built."""

    code = "bad_package"


class ServingError(AfdError):
    """A server cannot be started, stopped or reached."""

    code = "server_failed"


class ClientClosedError(AfdError):
    """A client was used after its end or where it does not belong, or was ended while it was asking."""

    code = "client_closed"


class ClientError(AfdError):
    """A server was asked and gave no answer that can be used."""

    code = "client_error"


class ServerUnavailableError(ClientError):
    """The server cannot be reached, or has no room for the request; it is safe to ask again."""

    code = "unavailable"


class TlsError(ClientError):
    """The server does not speak TLS, or nobody vouches for its certificate, or the certificate is another server's."""

    code = "tls"


class DeadlineExceededError(ClientError):
    """The answer did not come in time."""

    code = "deadline_exceeded"


class RequestRefusedError(ClientError):
    """The server does not take the request as a whole: an unknown model, a wrong token, an impossible option.

    Attributes:
        failure: The code and the reason, one of those that `afd_serve.response` lists; None where what refuses is not
            the model but the server or a proxy, which has words of its own.
    """

    code = "refused"

    def __init__(self, message: str, failure: Failure | None = None) -> None:
        super().__init__(message)
        self.failure = failure

    @classmethod
    def of(cls, failure: Failure) -> Self:
        """The error that a failure of the request as a whole is."""
        return cls(f"{failure.code}: {failure.reason}", failure)


class BadAnswerError(ClientError):
    """The answer is not in the wire format, or tells of a fault in the server."""

    code = "bad_answer"

"""As much of protobuf as it takes to write a request without generated code."""


def field(number: int, value: bytes) -> bytes:
    """A length-delimited field of a protobuf message."""
    size, encoded = len(value), b""
    while size > 127:
        encoded += bytes([size & 127 | 128])
        size >>= 7
    return bytes([number << 3 | 2]) + encoded + bytes([size]) + value

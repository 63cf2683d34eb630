"""AFD: keeps a frozen image classifier accurate on heavily compressed JPEG uploads."""

__version__ = "0.1.0"

"""``python -m afd_serve`` is ``afd-serve``."""

from afd_serve.cli import main

main()

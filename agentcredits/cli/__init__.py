"""The command line: ``agentcredits --help``."""

from __future__ import annotations

from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 1 problems found, 2 error, 3 out of credits.

    Args:
        arguments: The words after the program's name; ``sys.argv`` when left out.
    """
    # typer and rich are imported here, so that a library user who imports this package never pays for them
    from agentcredits.cli.app import run

    return run(arguments)

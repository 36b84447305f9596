"""The `slipway` command: picks the command, runs it, and turns every failure into words and an exit status.

Exit status: 0 done; 1 it failed; 2 the command line makes no sense; 130 interrupted. Nothing below this file ends the
process or prints an error.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from slipway_cli.errors import CliError
from slipway_cli.parser import overview, parse
from slipway_cli.terminal import printable


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line; the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    program = _program(sys.argv[0])
    if not words or words in (["--help"], ["-h"], ["help"]):
        sys.stdout.write(overview(program))
        return 0
    if words == ["--version"]:
        words = ["version", "--client"]
    try:
        command, arguments = parse(words, program)
        module = importlib.import_module(command.module)
        status = int(module.run(arguments, os.environ))
        sys.stdout.flush()
    except CliError as error:
        report(error, sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("\ninterrupted; what was applied goes on by itself", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader (head, less) has seen enough. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return status


def report(error: CliError, stream: TextIO) -> None:
    """Shows an error: what is wrong, details such as the target, and what to type."""
    lines = [f"error: {error.message}", *(f"  {detail}" for detail in error.details)]
    if error.hint:
        lines.append(f"  try: {error.hint}")
    print(printable("\n".join(lines)), file=stream)


def _program(path: str) -> str:
    """How the user calls us: kubectl runs its plugin `kubectl-slipway` for `kubectl slipway`."""
    return "kubectl slipway" if Path(path).name.startswith("kubectl-") else "slipway"


if __name__ == "__main__":
    sys.exit(main())

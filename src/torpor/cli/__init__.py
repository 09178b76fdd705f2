"""The `torpor` command.

`vm run` is what people wait for, so it is taken here before anything large is imported; every
other command goes through click (`torpor.cli.commands`).
"""

import sys

from torpor.errors import EXIT_TORPOR_FAILED, TorporError


def main() -> int:
    """Run the command line of this process; the exit status."""
    try:
        if sys.argv[1:3] == ["vm", "run"]:
            from torpor.cli.vm_run import vm_run

            return vm_run(sys.argv[3:])
        from torpor.cli.commands import run

        return run(sys.argv[1:])
    except TorporError as error:
        return _fail(str(error))
    except OSError as error:
        where = f"{error.filename}: " if error.filename is not None else ""
        return _fail(f"{where}{error.strerror or error}")
    except KeyboardInterrupt:
        return 130


def _fail(text: str) -> int:
    # Where standard error is closed Python has none; the status still says it.
    if sys.stderr is not None:
        sys.stderr.write(f"torpor: {text}\n")
    return EXIT_TORPOR_FAILED

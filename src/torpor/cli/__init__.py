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
        sys.stderr.write(f"torpor: {error}\n")
        return EXIT_TORPOR_FAILED
    except OSError as error:
        where = f"{error.filename}: " if error.filename is not None else ""
        sys.stderr.write(f"torpor: {where}{error.strerror or error}\n")
        return EXIT_TORPOR_FAILED
    except KeyboardInterrupt:
        return 130

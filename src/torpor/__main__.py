"""`python -m torpor`: the command, for processes that start it again."""

import sys

from torpor.cli import main

sys.exit(main())

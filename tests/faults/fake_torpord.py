"""torpord on a fake VM host, as a process that can be killed: its argument is the directory.

The VMs die with it, so its instances are found lost by the next one.
"""

import asyncio
import sys
from pathlib import Path

from tests.fake_vm import FakeHost
from torpor.torpord import Settings, run

if __name__ == "__main__":
    asyncio.run(run(Settings(Path(sys.argv[1]), listen="127.0.0.1:0"), FakeHost()))

"""Where torpord's VMs run: VM processes, kept warm per template, adopted after a restart."""

from torpor.vmhost.host import Host
from torpor.vmhost.pool import Limits

__all__ = ["Host", "Limits"]

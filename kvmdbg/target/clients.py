"""Who relies on the VM, and who drives it: at most one client resumes it, others look."""

from __future__ import annotations

from kvmdbg.errors import Busy
from kvmdbg.target.breakpoints import ClientId


class Clients:
    """The clients of one VM that have a say in how it runs."""

    def __init__(self, vm: str) -> None:
        self._vm = vm
        self._holders: set[ClientId] = set()
        self.driver: ClientId | None = None
        """The one client that may resume and change the VM; None: whoever does so first."""
        self.alone: ClientId | None = None
        """It drives in non-stop mode, and could not tell what others make the vCPUs do."""

    @property
    def holders(self) -> frozenset[ClientId]:
        """The clients that rely on the VM staying as they left it (see :meth:`hold`)."""
        return frozenset(self._holders)

    def hold(self, client: ClientId) -> None:
        """``client`` relies on a stopped VM staying stopped, whatever other monitors do."""
        self._holders.add(client)

    def let_go(self, client: ClientId) -> None:
        """``client`` no longer minds what the VM does; its breakpoints stay."""
        self._holders.discard(client)
        if self.driver == client:
            self.driver = None

    def drive(self, client: ClientId) -> None:
        """``client`` holds the VM, and drives it until it lets go. Raises Busy when another one
        does."""
        self.require_drive(client)
        self.driver = client
        self.hold(client)

    def join(self, client: ClientId) -> None:
        """``client`` holds the VM; it drives if nobody else does, and looks otherwise."""
        self.hold(client)
        if self.driver is None:
            self.driver = client

    def take_over(self, client: ClientId) -> None:
        """``client`` drives, whoever did; that one looks from now on. Raises Busy."""
        if self.alone not in (None, client):
            raise Busy(
                f"{self.alone} drives the VM {self._vm} in non-stop mode, which cannot be taken "
                "over: detach it there first"
            )
        self.hold(client)
        self.driver = client

    def may_drive(self, client: ClientId) -> bool:
        """True if ``client`` drives, or may begin to."""
        return self.driver in (None, client)

    def require_drive(self, client: ClientId) -> None:
        """Raise Busy when a client other than ``client`` drives the VM."""
        if not self.may_drive(client):
            raise Busy(
                f"the VM {self._vm} is driven by {self.driver}: detach it there first, "
                "or take over with gdb's monitor drive"
            )

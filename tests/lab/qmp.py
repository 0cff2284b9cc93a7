"""The little of QMP that the lab needs, synchronous, over a socket that QEMU was born with."""

from __future__ import annotations

import json
import socket
from typing import Any

from tests.lab.errors import LabError


class Monitor:
    """One monitor. Every call raises LabError when QEMU refuses or has ended."""

    def __init__(self, connection: socket.socket) -> None:
        self._stream = connection.makefile("rwb")

    def greet(self) -> None:
        """Wait until QEMU is up."""
        self._read()
        self.execute("qmp_capabilities")

    def execute(self, command: str, **arguments: object) -> Any:
        """Run a command; its result."""
        request = {"execute": command, "arguments": arguments}
        try:
            self._stream.write(json.dumps(request).encode() + b"\n")
            self._stream.flush()
        except OSError as error:
            raise LabError("the outer QEMU has ended") from error
        while True:
            answer = self._read()
            if "return" in answer:
                return answer["return"]
            if "error" in answer:
                raise LabError(f"the outer QEMU refused {command}: {answer['error']['desc']}")

    def _read(self) -> dict[str, Any]:
        line = self._stream.readline()
        if not line:
            raise LabError("the outer QEMU has ended")
        answer: dict[str, Any] = json.loads(line)
        return answer

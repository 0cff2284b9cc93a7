"""Inside an L1: build kvmdbg's shared objects; a tar of them, by where they are installed.

python3 -m tests.lab.inside.build_native ARCHIVE
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from tests.lab.tree import ROOT, built_objects


def main() -> None:
    """Build and pack."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["meson", "setup", folder, str(ROOT)], check=True)
        subprocess.run(["ninja", "-C", folder], check=True)
        with tarfile.open(sys.argv[1], "w") as tar:
            for path, name in built_objects(Path(folder)):
                tar.add(path, name)


if __name__ == "__main__":
    main()

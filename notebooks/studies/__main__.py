"""``python notebooks/studies``: see `studies.commands`."""

import sys
from pathlib import Path

# Python puts this folder first on its path, but the modules in it are to be imported as a package.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from studies.commands import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())

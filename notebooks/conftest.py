"""``pytest --nbval --nbval-current-env notebooks`` compares each output exactly with the stored one.

The notebooks read their results from the committed layer of the ledger, so that they are the same on every machine.
Cells that train live are tagged ``nbval-ignore-output``.
"""

import os
import tempfile

from sp.commands.running import QUIET, kernel_environment

SCRATCH = tempfile.TemporaryDirectory()  # so that tests leave no runs or figures behind


def pytest_configure():
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
    own = {"SP_STORE": f"{SCRATCH.name}/store", "SP_FIGURES": f"{SCRATCH.name}/figures"}
    os.environ.update({**kernel_environment(workers), **QUIET, **own})

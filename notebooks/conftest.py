"""``pytest --nbval --nbval-current-env notebooks``: each output is compared with the stored one, exactly.

What the notebooks show comes from the committed layer of the ledger, so that it is the same on every machine. Cells
that train before the reader's eyes are tagged ``nbval-ignore-output``.
"""

import os
import tempfile

from sp.notebooks.running import QUIET, kernel_environment

SCRATCH = tempfile.TemporaryDirectory()  # runs and figures of a test leave no trace


def pytest_configure():
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
    own = {"SP_STORE": f"{SCRATCH.name}/store", "SP_FIGURES": f"{SCRATCH.name}/figures"}
    os.environ.update({**kernel_environment(workers), **QUIET, **own})

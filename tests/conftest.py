"""``--device cuda``: the tests make their models and data there (conformance; see `on_a_gpu.py`)."""

import os

# A user may have set where figures and results go, or hidden progress bars, which tqdm reads when it is imported.
for name in ("SP_FIGURES", "SP_FRESH", "SP_LEDGER", "SP_STORE", "TQDM_DISABLE"):
    os.environ.pop(name, None)

import torch  # noqa: E402


def pytest_addoption(parser):
    parser.addoption("--device", default="cpu", help="where models and data are made by default, such as cuda")


def pytest_configure(config):
    if (device := config.getoption("--device")) != "cpu":
        torch.set_default_device(device)
        torch.use_deterministic_algorithms(True, warn_only=True)  # some tests compare runs bit by bit

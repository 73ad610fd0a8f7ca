"""``--device cuda``: the tests make their models and data there (conformance; see `on_a_gpu.py`)."""

import torch


def pytest_addoption(parser):
    parser.addoption("--device", default="cpu", help="where models and data are made by default, such as cuda")


def pytest_configure(config):
    if (device := config.getoption("--device")) != "cpu":
        torch.set_default_device(device)
        torch.use_deterministic_algorithms(True, warn_only=True)  # some tests compare runs bit by bit

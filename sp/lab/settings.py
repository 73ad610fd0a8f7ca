"""What a comparison takes where it is not told otherwise: networks, batches, lengths of training, seeds."""

from sp.checks import check_choice

TUNING_SEEDS = (100, 101, 102)  # reported seeds count from 0

# The buffer for digits holds the same share of the training images as 2,000 would of 14,000.
SETTINGS = {
    "digits": {"hidden": (100, 100), "batch_size": 32, "epochs": 5, "replay_capacity": 200, "warmup_steps": 50},
    "mnist": {"hidden": (256, 256), "batch_size": 128, "epochs": 1, "replay_capacity": 2000, "warmup_steps": 100},
}
SETTINGS["fashion_mnist"] = SETTINGS["mnist"]


def settings(dataset: str) -> dict:
    """The row of `SETTINGS`; an unknown data set is a ValueError that lists the known ones."""
    check_choice("dataset", dataset, SETTINGS)
    return SETTINGS[dataset]

"""The optimizers in PyTorch Lightning, accelerate and Hugging Face's Trainer: the same weights as in a plain loop."""

import logging
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from sp import ConsolidatingPlasticityOptimizer, SelectivePlasticityOptimizer
from tests.test_conformance import MAKERS, every


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4))


def batches():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(80, 6, generator=generator), torch.randint(4, (80,), generator=generator)
    return DataLoader(TensorDataset(x, y), batch_size=8)


def plain(make, gamma=0.95):
    model = network()
    optimizer = make(model)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma)
    for x, y in [*batches(), *batches()]:  # two epochs
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
    return model


@every
def test_lightning(make, tmp_path):
    lightning = pytest.importorskip("pytorch_lightning")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.network = network()

        def training_step(self, batch, _):
            return F.cross_entropy(self.network(batch[0]), batch[1])

        def configure_optimizers(self):
            optimizer = make(self.network)
            scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.95)
            return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}

    def fit(epochs, resume=None):
        module = Module()
        trainer = lightning.Trainer(
            accelerator="cpu", max_epochs=epochs, gradient_clip_val=1.0, enable_checkpointing=False, **quiet
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer.fit(module, batches(), ckpt_path=resume, weights_only=True)
        return module, trainer

    expected = plain(make).state_dict()
    torch.testing.assert_close(fit(2)[0].network.state_dict(), expected)
    fit(1)[1].save_checkpoint(tmp_path / "half.ckpt")
    torch.testing.assert_close(fit(2, tmp_path / "half.ckpt")[0].network.state_dict(), expected)


@every
def test_accelerate(make, tmp_path):
    accelerate = pytest.importorskip("accelerate")
    model = network()
    optimizer = make(model)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.95)
    accelerator = accelerate.Accelerator(cpu=True)
    model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, batches(), scheduler)
    for step, (x, y) in enumerate([*loader, *loader]):
        optimizer.zero_grad()
        accelerator.backward(F.cross_entropy(model(x), y))
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        if step == 6:  # what is saved is what is read
            accelerator.save_state(tmp_path)
            accelerator.load_state(tmp_path)
    torch.testing.assert_close(accelerator.unwrap_model(model).state_dict(), plain(make).state_dict())


class WithLoss(nn.Module):
    """A model in the form that Hugging Face's Trainer takes: it returns its loss."""

    def __init__(self):
        super().__init__()
        self.network = network()

    def forward(self, x, labels):
        return {"loss": F.cross_entropy(self.network(x), labels)}


CLASSES = {
    "selective": (SelectivePlasticityOptimizer, {"lr": 0.01, "warmup_steps": 8}),
    "consolidating": (ConsolidatingPlasticityOptimizer, {"warmup_steps": 8}),
}
RECIPES = [(kind, recipe) for kind in MAKERS for recipe in ("optimizer", "method", "class")]


@pytest.mark.parametrize(("kind", "recipe"), [pair for pair in RECIPES if pair[1] != "class" or pair[0] in CLASSES])
def test_hugging_face(kind, recipe, tmp_path):
    transformers = pytest.importorskip("transformers")
    examples = [{"x": x, "labels": y} for batch in batches() for x, y in zip(*batch, strict=True)]

    class Trainer(transformers.Trainer):
        def get_train_dataloader(self):
            return DataLoader(examples, batch_size=8)

    class OwnOptimizer(Trainer):
        def create_optimizer(self, model=None):
            if self.optimizer is None:
                self.optimizer = MAKERS[kind](self.model if model is None else model)
            return self.optimizer

    def fit(epochs, resume=None):
        model = WithLoss()
        given = {
            "optimizer": lambda: Trainer(model, arguments(epochs), optimizers=(MAKERS[kind](model), None)),
            "method": lambda: OwnOptimizer(model, arguments(epochs)),
            "class": lambda: Trainer(model, arguments(epochs), optimizer_cls_and_kwargs=CLASSES[kind]),
        }
        given[recipe]().train(resume_from_checkpoint=resume)
        return model.network.state_dict()

    def arguments(epochs):
        return transformers.TrainingArguments(
            output_dir=tmp_path,
            num_train_epochs=epochs,
            lr_scheduler_type="constant",
            save_strategy="epoch",
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
            logging_strategy="no",
        )

    expected = plain(MAKERS[kind], gamma=1.0).state_dict()
    torch.testing.assert_close(fit(2), expected, rtol=0, atol=0)
    torch.testing.assert_close(fit(2, tmp_path / "checkpoint-10"), expected, rtol=0, atol=0)

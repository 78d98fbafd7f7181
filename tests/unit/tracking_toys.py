"""A model and data small enough that a fit takes a second; for the tests of the command line and the tracker."""

from __future__ import annotations

import os
import signal

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader, TensorDataset


class ToyModel(pl.LightningModule):
    """A line without bias, fitted to zero with momentum, so that its state is more than its weights."""

    def __init__(
        self,
        dim: int = 4,
        lr: float = 0.1,
        note: str = "",
        signal_at: int | None = None,
        signal_name: str = "SIGINT",
        fail_at: int | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = torch.nn.Linear(dim, 1, bias=False)
        torch.nn.init.ones_(self.net.weight)

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        loss = self.net(batch[0]).square().mean()
        self.log("train/loss", loss)
        step = self.trainer.global_step
        if step == self.hparams["signal_at"]:
            os.kill(os.getpid(), getattr(signal, self.hparams["signal_name"]))
        if step == self.hparams["fail_at"]:
            raise ArithmeticError("a bug")
        return loss

    def validation_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
        # Best in the middle of training, so that best and last differ.
        self.log("val/loss", abs(self.trainer.global_step - 4.0))

    def test_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
        if self.hparams["signal_at"] is not None:
            os.kill(os.getpid(), getattr(signal, self.hparams["signal_name"]))
        self.log("test/loss", self.net(batch[0]).square().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.hparams["lr"], momentum=0.9)

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        checkpoint["module"] = type(self).__name__

    def lineage(self) -> dict[str, str]:
        return {"vae.run_id": "the-run", "vae.hash": "the-hash"}


class OtherModel(ToyModel):
    pass


class ToyData(pl.LightningDataModule):
    """Batches that are all alike, so that a resumed run needs no place in them."""

    def __init__(self, dim: int = 4, batches: int = 4, root: str | None = None) -> None:
        super().__init__()
        self.dim, self.batches = dim, batches

    def fingerprint(self) -> str:
        return "f" * 64

    def train_dataloader(self) -> DataLoader:
        row = torch.linspace(0.1, 1, self.dim)
        return DataLoader(TensorDataset(row.expand(self.batches * 2, -1)), batch_size=2)

    def val_dataloader(self) -> DataLoader:
        return self.train_dataloader()

    def test_dataloader(self) -> DataLoader:
        return self.train_dataloader()

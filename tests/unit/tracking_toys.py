"""A model and data small enough that a fit takes a second; for the tests of the command line and the tracker."""

from __future__ import annotations

import os
import signal

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset

from lightning_sora.errors import SoraError
from lightning_sora.spacetime import PatchSize, SpacetimeBatch, TokenGrid, TokenLayout


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
        die_at: int | None = None,
        die_with: str = "",
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = torch.nn.Linear(dim, 1, bias=False)
        torch.nn.init.ones_(self.net.weight)
        self.origin = "made"

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        loss = self.net(batch[0]).square().mean()
        self.log("train/loss", loss)
        step = self.trainer.global_step
        if step == self.hparams["signal_at"]:
            os.kill(os.getpid(), getattr(signal, self.hparams["signal_name"]))
        if step == self.hparams["fail_at"]:
            raise ArithmeticError("a bug")
        return loss

    def on_train_batch_end(self, *_: object) -> None:
        # After the callbacks, the one that keeps checkpoints among them.
        if self.trainer.global_step == self.hparams["die_at"] and os.path.exists(self.hparams["die_with"]):
            os.kill(os.getpid(), signal.SIGKILL)

    def validation_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
        # Best in the middle of training, so that best and last differ.
        self.log("val/loss", abs(self.trainer.global_step - 4.0))

    def test_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
        if self.hparams["signal_at"] is not None:
            os.kill(os.getpid(), getattr(signal, self.hparams["signal_name"]))
        self.log("test/loss", self.net(batch[0]).square().mean())

    def predict_step(self, batch: SpacetimeBatch, batch_idx: int) -> list[torch.Tensor]:
        return batch.videos()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.hparams["lr"], momentum=0.9)

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        checkpoint["module"] = type(self).__name__

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        self.origin = "restored"

    def lineage(self) -> dict[str, str]:
        return {"vae.run_id": "the-run", "vae.hash": "the-hash", "origin": self.origin}


class OtherModel(ToyModel):
    pass


class ToyData(pl.LightningDataModule):
    """Batches that are all alike, so that a resumed run needs no place in them."""

    def __init__(self, dim: int = 4, batches: int = 4, root: str | None = None) -> None:
        super().__init__()
        self.dim, self.batches = dim, batches

    def fingerprint(self, split: str = "train") -> str:
        return {"train": "f", "val": "d", "test": "e"}[split] * 64

    def train_dataloader(self) -> DataLoader:
        row = torch.linspace(0.1, 1, self.dim)
        return DataLoader(TensorDataset(row.expand(self.batches * 2, -1)), batch_size=2)

    def val_dataloader(self) -> DataLoader:
        return self.train_dataloader()

    def test_dataloader(self) -> DataLoader:
        return self.train_dataloader()

    def predict_dataloader(self) -> DataLoader:
        return DataLoader([spacetime_batch("a/1.mp4", "plain"), spacetime_batch("a_1.mp4", "other")], batch_size=None)


class _Unreadable(Dataset):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> torch.Tensor:
        raise SoraError(f"clip {index}: cannot be read; remove it")


class UnreadableData(ToyData):
    """A worker process fails."""

    def train_dataloader(self) -> DataLoader:
        return DataLoader(_Unreadable(), num_workers=1)


def spacetime_batch(*ids: str) -> SpacetimeBatch:
    """Clips of 5 frames of 16 x 16 pixels at 4 frames per second, of one grey each; captions: the ids in capitals."""
    patch = PatchSize(1, 16, 16)
    layout = TokenLayout.uniform(TokenGrid.of(5, 16, 16, patch), len(ids))
    return SpacetimeBatch.of(
        [torch.full((5, 16, 16, 3), 100 * place, dtype=torch.uint8) for place in range(len(ids))],
        layout=layout,
        patch=patch,
        captions=tuple(i.upper() for i in ids),
        ids=ids,
        visits=(0,) * len(ids),
        fps=(4.0,) * len(ids),
    )

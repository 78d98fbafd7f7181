"""Generated clips on disk while a test runs: a test that is interrupted goes on where it stopped."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor, nn

from lightning_sora.metrics.digests import weights_sha256
from lightning_sora.sealing import BLANK, is_whole, seal, write_whole

log = logging.getLogger(__name__)


class ClipCache:
    """Clips by name, of one model under one protocol.

    Args:
        root: under which each (model, protocol) has a folder of its own.
        model: whose present weights are part of the key.
        protocol: everything else that the clips depend on.
    """

    def __init__(self, root: str | Path, model: nn.Module, protocol: Mapping[str, Any]) -> None:
        text = json.dumps([weights_sha256(model), protocol], sort_keys=True, default=str)
        self.folder = Path(root) / "generated" / hashlib.sha256(text.encode()).hexdigest()[:16]

    def path(self, name: str) -> Path:
        """The file of a clip, whose name may hold any characters."""
        return self.folder / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.npy"

    def get(self, name: str) -> UInt8[Tensor, "frames height width 3"] | None:
        """A clip, if it was generated before; None, with a warning, if its file is damaged."""
        path = self.path(name)
        if not path.exists():
            return None
        content = path.read_bytes()
        if not is_whole(content):
            log.warning("%s is damaged: it is not what was written (SHA-256); clip %s is generated again", path, name)
            return None
        return torch.from_numpy(np.load(io.BytesIO(content)))

    def put(self, name: str, video: UInt8[Tensor, "frames height width 3"]) -> None:
        """Keeps a clip; an interrupted write leaves none."""
        path = self.path(name)
        content = io.BytesIO()
        np.save(content, video.cpu().numpy())
        write_whole(path, seal(content.getvalue() + BLANK.encode()))  # numpy reads no further than the array

    def clear(self) -> None:
        """Forgets all clips: the test is done."""
        shutil.rmtree(self.folder, ignore_errors=True)

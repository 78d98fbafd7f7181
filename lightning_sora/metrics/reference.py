"""Reference statistics: the real side of a distance, computed once, kept by content, verified on load."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from jaxtyping import Int
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lightning_sora.errors import SoraError
from lightning_sora.metrics.extractors.base import Extractor
from lightning_sora.metrics.frechet import Moments
from lightning_sora.metrics.protocol import ProtocolCard
from lightning_sora.sealing import write_whole

FORMAT = "lightning_sora reference 1"
#: What a header that is damaged, or of something else, makes its readers raise.
DAMAGE = (
    SafetensorError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError, MemoryError,
    OSError,
)  # fmt: skip


@dataclass(frozen=True)
class ReferenceStatistics:
    """Moments of a set of real clips, in random groups, with what they mean.

    Attributes:
        groups: moments of disjoint groups of clips.
        ids: hash of each clip's id, sorted.
        fields: how the clips were taken and what the extractor is: a protocol card's fields.
    """

    groups: Sequence[Moments]
    ids: Int[Tensor, " clips"]
    fields: Mapping[str, Any]

    @property
    def card(self) -> ProtocolCard:
        return ProtocolCard(self.fields)

    @property
    def digest(self) -> str:
        """SHA-256 of the content, whatever file holds it."""
        return hashlib.sha256(safetensors.torch.save(self._tensors(), self._header())).hexdigest()

    def _tensors(self) -> dict[str, Tensor]:
        return {
            "counts": torch.tensor([group.count for group in self.groups]),
            "totals": torch.stack([group.total for group in self.groups]),
            "outers": torch.stack([group.outer for group in self.groups]),
            "ids": self.ids.clone(),
        }

    def _header(self) -> dict[str, str]:
        # One entry: several would be written in any order, and the digest is of the bytes.
        return {"lightning_sora": json.dumps({"format": FORMAT, "fields": self.fields}, sort_keys=True)}

    def save(self, folder: str | Path, name: str) -> Path:
        """Writes ``NAME-DIGEST.safetensors`` and beside it the same facts as JSON, for people; the first's path."""
        folder = Path(folder)
        digest = self.digest
        path = folder / f"{name}-{digest[:16]}.safetensors"
        write_whole(path, safetensors.torch.save(self._tensors(), self._header()))
        facts = {"format": FORMAT, "sha256": digest, "clips": len(self.ids), "protocol_id": self.card.id}
        told = json.dumps({**facts, "protocol": self.fields}, indent=1, sort_keys=True)
        write_whole(path.with_suffix(".json"), told.encode())
        return path

    @classmethod
    def load(cls, path: str | Path) -> ReferenceStatistics:
        """Reads and verifies statistics.

        Raises:
            SoraError: no such file, something else, or content that is not what the file's name says.
        """
        path = Path(path)
        if not os.path.isfile(path):
            raise SoraError(
                f"no reference statistics at {path}; make them with `lightning-sora score --real DIR --save-reference`"
            )
        try:
            with safe_open(path, "pt") as file:
                header = json.loads((file.metadata() or {}).get("lightning_sora", "{}"))
                if header.get("format") != FORMAT:
                    raise SoraError(
                        f"{path} holds {header.get('format', 'something else')!r}, not {FORMAT!r}; give a file that "
                        "`lightning-sora score --save-reference` wrote"
                    )
                tensors = {name: file.get_tensor(name) for name in ("counts", "totals", "outers", "ids")}
            _check(tensors, header["fields"])
            groups = [
                Moments(int(c), t, o)
                for c, t, o in zip(*(tensors[n] for n in ("counts", "totals", "outers")), strict=True)
            ]
            loaded = cls(groups, tensors["ids"], header["fields"])
            digest = loaded.digest
        except SoraError:
            raise
        except DAMAGE as problem:
            reason = " ".join(str(problem).split())
            raise SoraError(f"{path} cannot be read as reference statistics ({reason}); make them anew") from problem
        if not path.stem.endswith(digest[:16]):
            raise SoraError(
                f"{path} has the digest {digest[:16]}, not the one in its name: it was changed or damaged, or "
                "renamed; make it anew, or copy it again"
            )
        return loaded

    def merge(self, other: ReferenceStatistics) -> ReferenceStatistics:
        """The statistics of both sets of clips together.

        Raises:
            SoraError: they were made by different protocols, or share clips.
        """
        self.card.check_same(other.card, "the reference statistics")
        shared = int(torch.isin(self.ids, other.ids).sum())
        if shared:
            raise SoraError(
                f"{shared} clips are in both reference statistics and would count twice; merge disjoint sets"
            )
        groups = [mine + theirs for mine, theirs in zip(self.groups, other.groups, strict=True)]
        return ReferenceStatistics(groups, torch.cat([self.ids, other.ids]).sort().values, self.fields)

    def check_extractor(self, extractor: Extractor) -> None:
        """Refuses an extractor that the statistics were not made by.

        Raises:
            SoraError: the cards of the two differ; it names the fields.
        """
        made_by = ProtocolCard({"extractor": self.fields.get("extractor")})
        made_by.check_same(ProtocolCard({"extractor": extractor.card()}), "the reference and these clips")


def _check(tensors: Mapping[str, Tensor], fields: object) -> None:
    """Raises ValueError where these are not the parts of statistics, or contradict each other."""
    if not isinstance(fields, Mapping) or not all(
        isinstance(fields.get(name, {}), Mapping) for name in ("clip", "extractor")
    ):
        raise ValueError("what it tells of its clips and extractor is no table of names")
    counts, totals, outers, ids = (tensors[name] for name in ("counts", "totals", "outers", "ids"))
    if totals.ndim != 2 or outers.shape != (*totals.shape, totals.shape[1]) or counts.shape != totals.shape[:1]:
        raise ValueError("its sums are not of one width")
    if not (totals.dtype == outers.dtype == torch.float64 and totals.isfinite().all() and outers.isfinite().all()):
        raise ValueError("its sums are not finite numbers in float64")
    if not (counts.dtype == ids.dtype == torch.int64 and ids.ndim == 1):
        raise ValueError("its clips are not told by hashes and counts")
    if not len(counts) or counts.min() < 0 or len(ids) != counts.sum():
        raise ValueError(f"it names {len(ids)} clips and sums {int(counts.sum())}")

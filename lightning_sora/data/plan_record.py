"""What an epoch has had: told in checkpoints, so that a training whose plan has changed goes on with the rest of it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from lightning_sora.data.plan import BatchPlan, Order
from lightning_sora.data.sources.base import ClipInfo
from lightning_sora.errors import SoraError

#: An epoch, and visits of it: indices of clips with how often each was visited before.
Part = tuple[int, Collection[tuple[int, int]]]
SPREAD = 0x5851F42D4C957F2D  # an odd factor, so that visits of a clip have keys far apart


class PlanRecord:
    """What the plan of a training depends on, and what an epoch has had, as a checkpoint tells it.

    Visits are told by keys made of clip ids, so that they mean the same where clips were added or removed.

    Args:
        settings: by their names in a recipe.
        infos: the clips.
        order: of an epoch.
        content: a hash of what the clips hold.
    """

    def __init__(
        self, settings: Mapping[str, Any], infos: Sequence[ClipInfo], order: Callable[[int], Order], content: str
    ) -> None:
        self.settings, self.order, self.count = dict(settings), order, len(infos)
        told = [hashlib.blake2b(info.id.encode(errors="surrogateescape"), digest_size=8).digest() for info in infos]
        self.keys = torch.tensor([int.from_bytes(one, "little", signed=True) for one in told])
        sizes = repr([(info.frames, info.height, info.width, info.fps) for info in infos])
        self.digests = {
            "clips": hashlib.sha256(b"".join(told) + sizes.encode()).hexdigest(),
            "order": hashlib.sha256(repr(list(order(0))).encode()).hexdigest(),
            "content": content,
        }

    def state(self, plan: BatchPlan, consumed: int) -> dict[str, Any]:
        """For a checkpoint after so many batches of the plan."""
        parts = {"since": plan.begun, "now": plan.had(consumed)}
        packed = {name: {"epoch": epoch, "had": self._keys_of(visits)} for name, (epoch, visits) in parts.items()}
        return {"settings": self.settings, "count": self.count, **self.digests, **packed}

    def changes(self, told: Mapping[str, Any]) -> list[str]:
        """What differs from what a checkpoint tells, in words."""
        found = [
            f"{name} was {told['settings'].get(name)}, is {value}"
            for name, value in self.settings.items()
            if told["settings"].get(name) != value
        ]
        if told["clips"] != self.digests["clips"]:
            found.append(
                f"there were {told['count']} clips, now {self.count}{' others' * (told['count'] == self.count)}"
            )
        elif told.get("content", self.digests["content"]) != self.digests["content"]:  # earlier versions told none
            found.append("data.source has other clips or captions under the same names")
        if not found and told["order"] != self.digests["order"]:
            found.append("data.source gives them in another order")
        return found

    def resumed(self, told: Mapping[str, Any]) -> tuple[Part, list[str]]:
        """Where a plan begins that goes on from a checkpoint, and what has changed since.

        Where nothing has, the plan is that of the checkpoint. Else it begins with what the epoch has not had yet.

        Raises:
            SoraError: clips of a mixture have changed, whose visits are counted over epochs.
        """
        changes = self.changes(told)
        if not changes:
            return self.part(told["since"]), []
        epoch = told["now"]["epoch"]
        if told["order"] != self.digests["order"] and {visit for _, visit in self.order(epoch)} != {epoch}:
            raise SoraError(
                f"the mixture has changed since the checkpoint ({'; '.join(changes)}), so that some clips would come "
                "twice and others never; give data the values of then, or begin a new fit without --ckpt_path"
            )
        return self.part(told["now"]), changes

    def part(self, told: Mapping[str, Any]) -> Part:
        """An epoch and its visits, as a checkpoint tells them."""
        had = set(told["had"].tolist())
        visits = self.order(told["epoch"]) if had else []
        keys = self._keys_of(visits).tolist()
        return told["epoch"], frozenset(visit for visit, key in zip(visits, keys, strict=True) if key in had)

    def _keys_of(self, visits: Collection[tuple[int, int]]) -> Int64[Tensor, " visits"]:
        clips = torch.tensor([index for index, _ in visits], dtype=torch.int64)
        return self.keys[clips] ^ (torch.tensor([visit for _, visit in visits], dtype=torch.int64) * SPREAD)

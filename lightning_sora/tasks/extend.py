"""From clips: what comes after one, before it, between two, or round and round."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch

from lightning_sora.errors import SoraError
from lightning_sora.models.given import Given
from lightning_sora.spacetime import PatchSize, TokenGrid, VideoSize
from lightning_sora.tasks.base import Clip, Inputs, SamplingModel, Strengths, Task, anew, between, blank, register_task


def _share(context: float) -> float:
    if not 0 < context < 1:
        raise SoraError(f"context={context} must lie in (0, 1): the share of a window that is given")
    return context


def _before(size: VideoSize, patch: PatchSize, context: float, there: int, more: int | None = None) -> int:
    """How many frames at the start of a window are given: 1 + n tokens in time, and at least one is left to make.

    Args:
        more: how many frames are to be made: where that is less than the window leaves, more is given.
    """
    least = max(1, round(context * size.frames), 0 if more is None else size.frames - more)
    wanted = min(there, least, size.frames - patch.frames)
    if wanted < 1:
        raise SoraError(f"a clip of {size.frames} frames leaves none to be made; ask for {1 + patch.frames} at least")
    return 1 + (wanted - 1) // patch.frames * patch.frames


def _after(size: VideoSize, patch: PatchSize, context: float, there: int, more: int | None = None) -> int:
    """How many frames at the end of a window are given: n tokens in time, at least the first of the window left.

    Args:
        more: see :func:`_before`.
    """
    least = max(patch.frames, round(context * size.frames), 0 if more is None else size.frames - more)
    wanted = min(there, least, size.frames - 1)
    if wanted < patch.frames:
        raise SoraError(
            f"a video of {there} frames is shorter than a token of {patch.frames}; give a longer one, or ask for "
            f"frames={1 + patch.frames} at least"
        )
    return wanted // patch.frames * patch.frames


def continued(size: VideoSize, clip: Clip, count: int) -> Given:
    """A window that begins with the last frames of a clip."""
    video, strength = blank(size)
    video[:count], strength[:count] = clip[-count:], 0.0
    return Given(video, strength)


class Extend(Task):
    """What lies beside a clip in time; as many windows as it takes. The clip's own frames come out as they were given.

    Args:
        context: the least share of a window that the model sees of what is there.
    """

    needs = ("video",)
    takes = ("extra",)

    def __init__(self, context: float = 0.5) -> None:
        self.context = _share(context)

    @abstractmethod
    def count(self, size: VideoSize, patch: PatchSize, there: int, more: int | None) -> int:
        """How many frames of a window are given, of so many that are there, where so many more are to be made."""

    @abstractmethod
    def joined(self, clip: Clip, window: Clip, count: int) -> Clip:
        """A clip with what a window adds to it, of which ``count`` frames were given."""

    @abstractmethod
    def trimmed(self, clip: Clip, frames: int) -> Clip:
        """So many frames of a clip, those that were given first among them."""

    def sample(
        self, model: SamplingModel, prompts: Sequence[str], size: VideoSize, inputs: Inputs, **options: Any
    ) -> list[Clip]:
        clips = [inputs["video"]] * len(prompts)
        there = len(clips[0])
        more = inputs.get("extra", size.frames - self.count(size, model.patch, there, None))
        return self.extended(model, prompts, clips, there + more, size, **options)

    def extended(
        self,
        model: SamplingModel,
        prompts: Sequence[str],
        clips: Sequence[Clip],
        frames: int,
        size: VideoSize,
        *,
        keys: Sequence[tuple[Any, ...]],
        **options: Any,
    ) -> list[Clip]:
        """Clips of one length with so many frames, each window going on from the one before."""
        made, window = list(clips), 0
        while len(made[0]) < frames:
            left = frames - len(made[0])
            given = [self.given(size, model.patch, {"video": clip, "extra": left}) for clip in made]
            count = self.count(size, model.patch, len(made[0]), left)
            more = model.sample(prompts, *size, given=given, keys=[(*key, window) for key in keys], **options)
            made = [self.joined(clip, new, count) for clip, new in zip(made, more, strict=True)]
            window += 1
        return [self.trimmed(clip, frames) for clip in made]


@register_task("extend_forward")
class ExtendForward(Extend):
    """What comes after a clip; as many windows as it takes.

    The clip's own frames come out as they were given.

    Args:
        context: the least share of a window that the model sees of what is there.
    """

    rests_on = ("first_frame_alone", "encoder_causal")

    def strengths(self, grid: TokenGrid, draw: torch.Generator) -> Strengths:
        strengths = anew(grid)
        if grid.frames > 1:
            strengths[: between(1, grid.frames - 1, draw)] = 0.0
        return strengths

    def given(self, size: VideoSize, patch: PatchSize, inputs: Inputs) -> Given:
        shown = inputs["video"]
        return continued(size, shown, self.count(size, patch, len(shown), inputs.get("extra")))

    def count(self, size: VideoSize, patch: PatchSize, there: int, more: int | None) -> int:
        return _before(size, patch, self.context, there, more)

    def joined(self, clip: Clip, window: Clip, count: int) -> Clip:
        return torch.cat([clip, window[count:]])

    def trimmed(self, clip: Clip, frames: int) -> Clip:
        return clip[:frames]


@register_task("extend_backward")
class ExtendBackward(Extend):
    """What comes before a clip; as many windows as it takes.

    The clip's own frames come out as they were given.

    Args:
        context: the least share of a window that the model sees of what is there.
    """

    def strengths(self, grid: TokenGrid, draw: torch.Generator) -> Strengths:
        strengths = anew(grid)
        if grid.frames > 1:
            strengths[grid.frames - between(1, grid.frames - 1, draw) :] = 0.0
        return strengths

    def given(self, size: VideoSize, patch: PatchSize, inputs: Inputs) -> Given:
        shown = inputs["video"]
        count = self.count(size, patch, len(shown), inputs.get("extra"))
        video, strength = blank(size)
        video[-count:], strength[-count:] = shown[:count], 0.0
        return Given(video, strength)

    def count(self, size: VideoSize, patch: PatchSize, there: int, more: int | None) -> int:
        return _after(size, patch, self.context, there, more)

    def joined(self, clip: Clip, window: Clip, count: int) -> Clip:
        return torch.cat([window[:-count], clip])

    def trimmed(self, clip: Clip, frames: int) -> Clip:
        return clip[-frames:]


@register_task("connect")
class Connect(Task):
    """One clip, what leads from it to another, and that one; both come out as they were given.

    Args:
        context: the share of a window that the model sees of each.
    """

    needs: ClassVar[tuple[str, ...]] = ("video", "second")
    rests_on = ("first_frame_alone", "encoder_causal")

    def __init__(self, context: float = 0.3) -> None:
        if not 0 < context < 0.5:
            raise SoraError(f"context={context} must lie in (0, 0.5): the share of a window that is given of each clip")
        self.context = context

    def strengths(self, grid: TokenGrid, draw: torch.Generator) -> Strengths:
        strengths = anew(grid)
        if grid.frames > 2:
            before = between(1, grid.frames - 2, draw)
            after = between(1, grid.frames - 1 - before, draw)
            strengths[:before] = strengths[grid.frames - after :] = 0.0
        return strengths

    def _counts(self, size: VideoSize, patch: PatchSize, inputs: Inputs) -> tuple[int, int]:
        before = _before(size, patch, self.context, len(inputs["video"]))
        after = _after(size, patch, self.context, len(inputs["second"]))
        if before + after >= size.frames:
            raise SoraError(
                f"two clips leave nothing of {size.frames} frames to be made; ask for frames="
                f"{1 + 2 * patch.frames} at least"
            )
        return before, after

    def given(self, size: VideoSize, patch: PatchSize, inputs: Inputs) -> Given | None:
        before, after = self._counts(size, patch, inputs)
        video, strength = blank(size)
        video[:before], strength[:before] = inputs["video"][-before:], 0.0
        video[-after:], strength[-after:] = inputs["second"][:after], 0.0
        return Given(video, strength)

    def sample(
        self, model: SamplingModel, prompts: Sequence[str], size: VideoSize, inputs: Inputs, **options: Any
    ) -> list[Clip]:
        before, after = self._counts(size, model.patch, inputs)
        made = super().sample(model, prompts, size, inputs, **options)
        return [torch.cat([inputs["video"], clip[before:-after], inputs["second"]]) for clip in made]


@register_task("loop")
class Loop(Connect):
    """A clip that can be played round and round: one that is given or made first, and what leads from its end to its
    beginning."""

    needs = ()
    takes = ("video",)

    def given(self, size: VideoSize, patch: PatchSize, inputs: Inputs) -> Given | None:
        return super().given(size, patch, {**inputs, "second": inputs["video"]}) if "video" in inputs else None

    def sample(
        self, model: SamplingModel, prompts: Sequence[str], size: VideoSize, inputs: Inputs, **options: Any
    ) -> list[Clip]:
        keys = options.pop("keys")
        clips = [inputs["video"]] * len(prompts) if "video" in inputs else None
        if clips is None:
            clips = model.sample(prompts, *size, keys=[(*key, 0) for key in keys], **options)
        before, after = self._counts(size, model.patch, {"video": clips[0], "second": clips[0]})
        given = [self.given(size, model.patch, {"video": clip}) for clip in clips]
        made = model.sample(prompts, *size, given=given, keys=[(*key, 1) for key in keys], **options)
        return [torch.cat([clip, back[before:-after]]) for clip, back in zip(clips, made, strict=True)]

"""Whether less or more of a metric is better: one table for training, ablations and comparisons."""

from __future__ import annotations

from typing import Literal

from lightning_sora.errors import SoraError

Mode = Literal["min", "max"]

LESS = (
    "loss", "denoising_error", "l1", "reconstruction", "lpips", "fid", "fvd", "rfvd", "kvd", "jedi", "warping_error",
    "world_warping_error", "trajectory_error", "parallax_error", "depth_error", "tokens", "flops", "seconds",
    "peak_memory_gib", "peak_cuda_memory_gib", "skipped_clips",
)  # fmt: skip
MORE = (
    "psnr", "ssim", "adherence", "clip_score", "temporal_flickering", "motion_smoothness", "identity", "permanence",
    "subject_consistency", "background_consistency", "clip_temporal_consistency", "bleu", "fact", "kept", "rich",
    "tokens_per_s", "clips_per_s", "token_use", "padding_spared",
)  # fmt: skip
#: Facts that the world evaluator reads; it logs its accuracy as ``SPLIT/GROUP/FACT``.
READ = ("color", "count", "shape", "size", "motion", "camera", "depth_order")
#: What is logged beside a score and is none: its error, its floor, its chance level, how many clips it is of.
BESIDE = (
    "se", "stderr", "small_sample_bias", "real", "real_stderr", "real_vs_real", "real_vs_real_low", "real_vs_real_high",
    "shuffled", "clips", "truncated", "scored",
)  # fmt: skip
DIRECTIONS: dict[str, Mode] = {**dict.fromkeys(LESS, "min"), **dict.fromkeys(MORE, "max")}


def direction(metric: str) -> Mode | None:
    """Says whether less or more of a metric is better, by its logged name; None where that is not known.

    A name is ``SPLIT/SCORE`` or ``SPLIT/SCORE_PART``: ``val/loss_t3`` is directed as ``loss``. A user's own metric is
    not known, nor is what is no score, such as a standard error.
    """
    *groups, name = metric.split("/")
    if len(groups) == 2 and name in READ:
        return "max"
    name = name.removeprefix("vae_")  # the same of what the VAE alone gives back
    if name not in DIRECTIONS and any(name.endswith(f"_{end}") for end in BESIDE):
        return None
    stems = [stem for stem in DIRECTIONS if name == stem or name.startswith(f"{stem}_")]
    return DIRECTIONS[max(stems, key=len)] if stems else None


def declare(metric: str, mode: Mode) -> None:
    """Takes note of the direction of a metric of one's own; the table's own stay.

    Raises:
        SoraError: the table says otherwise.
    """
    if DIRECTIONS.setdefault(metric, mode) != mode:
        known = "less" if mode == "max" else "more"
        raise SoraError(
            f"{metric} is known as a metric of which {known} is better, and now the other way round is declared; "
            "choose another name"
        )


def chosen_mode(metric: str, asked: Mode | None, key: str) -> Mode:
    """The mode to go by: the metric's own, or for a metric that is not known the one that is asked for.

    Args:
        key: how a user gives the mode, for messages: "mode: min|max", "--mode min|max".

    Raises:
        SoraError: a mode that contradicts the metric's own, or none for a metric that is not known.
    """
    known = direction(metric)
    if known is None and asked is None:
        raise SoraError(f"whether less or more of {metric} is better is not known; say it by {key}")
    if known is not None and asked not in (None, known):
        raise SoraError(
            f"mode {asked} says that {'less' if asked == 'min' else 'more'} of {metric} is better, but "
            f"{'less' if known == 'min' else 'more'} is; drop the mode, or name another metric"
        )
    return known or asked or "min"

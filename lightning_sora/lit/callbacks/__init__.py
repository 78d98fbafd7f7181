"""Callbacks: the evaluation, costs, scores of single clips, speed and memory, the gallery, predictions, parts."""

from lightning_sora.lit.callbacks.clip_scores import ClipScores
from lightning_sora.lit.callbacks.costs import Costs
from lightning_sora.lit.callbacks.evaluate import Evaluate
from lightning_sora.lit.callbacks.gallery import Gallery
from lightning_sora.lit.callbacks.predictions import PredictionWriter
from lightning_sora.lit.callbacks.progress import Progress
from lightning_sora.lit.callbacks.speed import Speed
from lightning_sora.lit.callbacks.summary import PartsSummary

__all__ = ["ClipScores", "Costs", "Evaluate", "Gallery", "PartsSummary", "PredictionWriter", "Progress", "Speed"]

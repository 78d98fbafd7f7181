"""lightning_sora: controlled experiments on Sora-class text-to-video models.

Everything public is a name of this module. Each is imported when it is first used, so that ``import lightning_sora``
costs nothing.

    >>> import lightning_sora as ls
    >>> clip = ls.World("tiny").render(ls.World("tiny").facts(0), frames=9, height=32, width=32, fps=8)
    >>> tuple(clip.shape), clip.dtype
    ((9, 32, 32, 3), torch.uint8)
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from lightning_sora.ablation.study import Study as Study
    from lightning_sora.data.collection import open_collection as open_collection
    from lightning_sora.data.datamodule import SpacetimeDataModule as SpacetimeDataModule
    from lightning_sora.data.manifest import MANIFESTS as MANIFESTS
    from lightning_sora.data.sizes import SIZES as SIZES
    from lightning_sora.data.sources import SOURCES as SOURCES
    from lightning_sora.diffusion.guidance import GUIDANCE as GUIDANCE
    from lightning_sora.diffusion.paths import OBJECTIVES as OBJECTIVES
    from lightning_sora.diffusion.samplers import SAMPLERS as SAMPLERS
    from lightning_sora.diffusion.timesteps import TIMESTEPS as TIMESTEPS
    from lightning_sora.diffusion.weighting import WEIGHTINGS as WEIGHTINGS
    from lightning_sora.errors import SoraError as SoraError
    from lightning_sora.jobs.engines import ENGINES as ENGINES
    from lightning_sora.lab.ablating import ablate as ablate
    from lightning_sora.lab.cache import cache_latents as cache_latents
    from lightning_sora.lab.caption import caption as caption
    from lightning_sora.lab.check import check_data as check_data
    from lightning_sora.lab.comparing import Verdicts as Verdicts
    from lightning_sora.lab.comparing import compare as compare
    from lightning_sora.lab.exporting import export as export
    from lightning_sora.lab.inspect import inspect_data as inspect_data
    from lightning_sora.lab.models import load as load
    from lightning_sora.lab.parts import registries as registries
    from lightning_sora.lab.sampling import Samples as Samples
    from lightning_sora.lab.sampling import sample as sample
    from lightning_sora.lab.sampling import sample_again as sample_again
    from lightning_sora.lab.score import score as score
    from lightning_sora.lab.videos import read_video as read_video
    from lightning_sora.lab.videos import save_video as save_video
    from lightning_sora.lit.captioner import LitCaptioner as LitCaptioner
    from lightning_sora.lit.captioners import CAPTIONERS as CAPTIONERS
    from lightning_sora.lit.dit import LitDiT as LitDiT
    from lightning_sora.lit.expander import EXPANDERS as EXPANDERS
    from lightning_sora.lit.expander import LitExpander as LitExpander
    from lightning_sora.lit.module import LitModule as LitModule
    from lightning_sora.lit.optimizers import SCHEDULES as SCHEDULES
    from lightning_sora.lit.vae import LitVAE as LitVAE
    from lightning_sora.metrics.base import METRICS as METRICS
    from lightning_sora.metrics.base import Evaluated as Evaluated
    from lightning_sora.metrics.base import Needs as Needs
    from lightning_sora.metrics.base import PerVideoMetric as PerVideoMetric
    from lightning_sora.metrics.base import Score as Score
    from lightning_sora.metrics.base import VideoMetric as VideoMetric
    from lightning_sora.metrics.base import register_metric as register_metric
    from lightning_sora.metrics.evaluation import Evaluation as Evaluation
    from lightning_sora.metrics.extractors import EXTRACTORS as EXTRACTORS
    from lightning_sora.metrics.results import Results as Results
    from lightning_sora.metrics.video_distances import FVD as FVD
    from lightning_sora.metrics.video_distances import KVD as KVD
    from lightning_sora.models.configs import DiffusionConfig as DiffusionConfig
    from lightning_sora.models.configs import DiTConfig as DiTConfig
    from lightning_sora.models.configs import SamplingConfig as SamplingConfig
    from lightning_sora.models.given import Given as Given
    from lightning_sora.models.latent_diffusion import LatentDiffusion as LatentDiffusion
    from lightning_sora.models.text import TEXT_ENCODERS as TEXT_ENCODERS
    from lightning_sora.models.vae import VAES as VAES
    from lightning_sora.models.vae import ClipVAE as ClipVAE
    from lightning_sora.models.vae.losses import VAELossConfig as VAELossConfig
    from lightning_sora.nn.attention import ATTENTION as ATTENTION
    from lightning_sora.nn.attention import AttentionBlock as AttentionBlock
    from lightning_sora.nn.attention import MaskedBlock as MaskedBlock
    from lightning_sora.nn.attention import PartitionBlock as PartitionBlock
    from lightning_sora.nn.attention import create_attention as create_attention
    from lightning_sora.nn.attention import list_attention as list_attention
    from lightning_sora.nn.attention import register_attention as register_attention
    from lightning_sora.recipe.recipe import Recipe as Recipe
    from lightning_sora.spacetime import Crop as Crop
    from lightning_sora.spacetime import DataSpec as DataSpec
    from lightning_sora.spacetime import PatchSize as PatchSize
    from lightning_sora.spacetime import SpacetimeBatch as SpacetimeBatch
    from lightning_sora.spacetime import TokenGrid as TokenGrid
    from lightning_sora.spacetime import TokenLayout as TokenLayout
    from lightning_sora.spacetime import VideoSize as VideoSize
    from lightning_sora.spacetime import patchify as patchify
    from lightning_sora.spacetime import unpatchify as unpatchify
    from lightning_sora.tasks import TASKS as TASKS
    from lightning_sora.tasks import Task as Task
    from lightning_sora.tasks import TaskMixture as TaskMixture
    from lightning_sora.tasks import register_task as register_task
    from lightning_sora.tasks import sample_task as sample_task
    from lightning_sora.testbench.lit_evaluator import LitEvaluator as LitEvaluator
    from lightning_sora.testbench.prompts import PromptDataModule as PromptDataModule
    from lightning_sora.world import World as World

#: module: the names that it gives to this one.
_PLACES = {
    "ablation.study": ("Study",),
    "data.collection": ("open_collection",),
    "data.datamodule": ("SpacetimeDataModule",),
    "data.manifest": ("MANIFESTS",),
    "data.sizes": ("SIZES",),
    "data.sources": ("SOURCES",),
    "diffusion.guidance": ("GUIDANCE",),
    "diffusion.paths": ("OBJECTIVES",),
    "diffusion.samplers": ("SAMPLERS",),
    "diffusion.timesteps": ("TIMESTEPS",),
    "diffusion.weighting": ("WEIGHTINGS",),
    "errors": ("SoraError",),
    "jobs.engines": ("ENGINES",),
    "lab.ablating": ("ablate",),
    "lab.comparing": ("Verdicts", "compare"),
    "lab.cache": ("cache_latents",),
    "lab.caption": ("caption",),
    "lab.check": ("check_data",),
    "lab.exporting": ("export",),
    "lab.inspect": ("inspect_data",),
    "lab.models": ("load",),
    "lab.parts": ("registries",),
    "lab.sampling": ("Samples", "sample", "sample_again"),
    "lab.score": ("score",),
    "lab.videos": ("read_video", "save_video"),
    "lit.captioner": ("LitCaptioner",),
    "lit.captioners": ("CAPTIONERS",),
    "lit.dit": ("LitDiT",),
    "lit.expander": ("EXPANDERS", "LitExpander"),
    "lit.module": ("LitModule",),
    "lit.optimizers": ("SCHEDULES",),
    "lit.vae": ("LitVAE",),
    "metrics.base": ("METRICS", "Evaluated", "Needs", "PerVideoMetric", "Score", "VideoMetric", "register_metric"),
    "metrics.evaluation": ("Evaluation",),
    "metrics.extractors": ("EXTRACTORS",),
    "metrics.results": ("Results",),
    "metrics.video_distances": ("FVD", "KVD"),
    "models.configs": ("DiTConfig", "DiffusionConfig", "SamplingConfig"),
    "models.given": ("Given",),
    "models.latent_diffusion": ("LatentDiffusion",),
    "models.text": ("TEXT_ENCODERS",),
    "models.vae": ("VAES", "ClipVAE"),
    "models.vae.losses": ("VAELossConfig",),
    "nn.attention": (
        "ATTENTION",
        "AttentionBlock",
        "MaskedBlock",
        "PartitionBlock",
        "create_attention",
        "list_attention",
        "register_attention",
    ),
    "recipe.recipe": ("Recipe",),
    "spacetime": (
        "Crop",
        "DataSpec",
        "PatchSize",
        "SpacetimeBatch",
        "TokenGrid",
        "TokenLayout",
        "VideoSize",
        "patchify",
        "unpatchify",
    ),
    "tasks": ("TASKS", "Task", "TaskMixture", "register_task", "sample_task"),
    "testbench.lit_evaluator": ("LitEvaluator",),
    "testbench.prompts": ("PromptDataModule",),
    "world": ("World",),
}
_MODULES = {name: module for module, names in _PLACES.items() for name in names}

__all__ = sorted([*_MODULES, "__version__"])


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__

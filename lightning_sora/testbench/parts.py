"""All parts of the testbench: importing this module registers them."""

from lightning_sora.testbench import (  # noqa: F401  # register
    caption_scores,
    captioner,
    extractor,
    lit_evaluator,
    metrics,
    prompts,
    source,
    worlds,
)

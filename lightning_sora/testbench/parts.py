"""All parts of the testbench: importing this module registers them."""

from lightning_sora.testbench import caption_scores, captioner, lit_evaluator, prompts  # noqa: F401  # register

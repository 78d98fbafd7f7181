"""The parts of the testbench, each imported when its kind is asked for."""

#: What is imported for which kind of part.
PARTS = {
    "caption_score": ["lightning_sora.testbench.caption_scores"],
    "captioner": ["lightning_sora.testbench.captioner"],
    "expansion_score": ["lightning_sora.testbench.caption_scores"],
    "extractor": ["lightning_sora.testbench.extractor"],
    "metric": ["lightning_sora.testbench.metrics"],
    "source": ["lightning_sora.testbench.source", "lightning_sora.testbench.worlds"],
    "class": ["lightning_sora.testbench.lit_evaluator", "lightning_sora.testbench.prompts"],
}

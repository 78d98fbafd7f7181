"""VAEFacts: what a VAE says of itself, so that what rests on it can ask."""

from __future__ import annotations

from dataclasses import dataclass

#: What is so where a fact does not hold.
OTHERWISE = {
    "first_frame_alone": "the first latent frame of a clip depends on later frames, so that it is not that of an image",
    "encoder_causal": "latent frames depend on later frames of the clip",
    "decoder_causal": "decoded frames depend on later latent frames",
    "chunk_exact": "a long clip that is passed in chunks has other latents than one that is passed whole",
    "deterministic_posterior": "the latent of a clip is a distribution",
}


@dataclass(frozen=True)
class VAEFacts:
    """What holds of a video VAE. :mod:`lightning_sora.models.vae.contract` puts those that it declares to the test.

    Attributes:
        first_frame_alone: the first latent frame of a clip is the latent of its first frame as an image.
        encoder_causal: cut short to more than one latent frame, a clip keeps its latents.
        decoder_causal: cut short to more than one latent frame, a latent keeps its video.
        chunk_exact: passed in chunks of frames, as bounds memory, a clip has the latents and the video that it has when
            it is passed whole; None where it is always passed whole.
        deterministic_posterior: the latent of a clip is a point, so that drawing from the posterior adds nothing.

    Example:
        >>> from lightning_sora.models.facts import VAEFacts
        >>> VAEFacts(first_frame_alone=False).lacking("first_frame_alone", "encoder_causal")
        ('first_frame_alone',)
    """

    first_frame_alone: bool = True
    encoder_causal: bool = True
    decoder_causal: bool = True
    chunk_exact: bool | None = None
    deterministic_posterior: bool = False

    def lacking(self, *names: str) -> tuple[str, ...]:
        """Those of some facts that do not hold."""
        return tuple(name for name in names if getattr(self, name) is False)

    def otherwise(self, *names: str) -> str:
        """In words, what is so since some facts do not hold; empty where they all do."""
        return "; ".join(OTHERWISE[name] for name in self.lacking(*names))

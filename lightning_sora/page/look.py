"""How the page looks: its style, and what it says in HTML. Nothing comes from elsewhere, fonts included."""

from __future__ import annotations

import base64
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning_sora.lab.models import VideoModel
    from lightning_sora.page.studio import Made, Step

FONTS = ("system-ui", "-apple-system", "Segoe UI", "Helvetica", "Arial", "sans-serif")
MONO = ("ui-monospace", "Menlo", "Consolas", "monospace")
#: Pixels that what is made is high on the page.
STAGE = 380
STYLE = """
.gradio-container main { width: 100%; max-width: 1040px !important; margin: 0 auto !important; }
.head h1 { font-size: 1.35rem; font-weight: 650; margin: 0 0 .15rem; }
.head p, .task p { margin: 0; line-height: 1.45; overflow-wrap: anywhere; }
.head p, .task p, .say .faint, .say .note { opacity: .72; }
.head, .task, .say { padding: 0 2px !important; }
.head .html-container, .task .html-container, .say .html-container, .stage .html-container { padding: 0 !important; }
.say { min-height: 4.2rem; line-height: 1.45; overflow-wrap: anywhere; }
.say p { margin: 0 0 .25rem; }
.say .problem { border-left: 4px solid #c2362b; padding: .45rem .75rem; background: #c2362b14; }
.say progress { appearance: none; display: block; width: 100%; height: 8px; border: 0; margin-top: .5rem; }
.say progress, .say progress::-webkit-progress-bar { border-radius: 4px; background: var(--border-color-primary); }
.say progress::-webkit-progress-value { border-radius: 4px; background: var(--primary-500); }
.say progress::-moz-progress-bar { border-radius: 4px; background: var(--primary-500); }
.stage video, .stage img { image-rendering: pixelated; object-fit: contain; }
.stage img { display: block; width: 100%; height: STAGEpx; background: var(--background-fill-secondary); }
#given-mask label { max-width: calc(100% - 2.5rem); }
footer { display: none !important; }
""".replace("STAGE", str(STAGE))


def head(model: VideoModel) -> str:
    """What the page says of the model."""
    size = model.model.seen_sizes.native
    trained = "" if size is None else (
        f" &middot; trained on {size[0]} frames of {size[1]} x {size[2]} at {model.model.seen_sizes.fps:g} a second"
    )  # fmt: skip
    return f"<h1>Videos from prompts</h1><p>{escape(model.path)}{trained}</p>"


def paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def idle() -> str:
    return "<p class='faint'>What is made appears here.</p>"


def waiting() -> str:
    return "<p class='faint'>Waiting for its turn: one video is made at a time.</p><progress></progress>"


def stopped() -> str:
    return "<p class='faint'>Stopped. Nothing of it was kept.</p>"


def problem(line: str) -> str:
    return f"<p class='problem' role='alert'>{escape(line)}</p>"


def progress(step: Step) -> str:
    """How far a job is, with the time that is left."""
    if step.left is None:
        return "<p>Begins</p><progress></progress>"
    told = f"Step {step.done} of {step.total} &middot; {left(step.left)}"
    return f"<p>{told}</p><progress value='{step.done}' max='{step.total}'></progress>"


def left(seconds: float) -> str:
    """Says how long it takes yet.

    Example:
        >>> from lightning_sora.page.look import left
        >>> left(0.2), left(42), left(150)
        ('a moment left', 'about 42 s left', 'about 3 min left')
    """
    if seconds < 1:
        return "a moment left"
    return f"about {seconds:.0f} s left" if seconds < 90 else f"about {max(2, int(seconds / 60 + 0.5))} min left"


def picture(file: Path, told: str) -> str:
    """A picture that is part of the page itself."""
    kind = file.suffix.removeprefix(".")
    content = base64.b64encode(file.read_bytes()).decode()
    return f"<img alt='{escape(told)}' src='data:image/{kind};base64,{content}'>"


def made(result: Made, seed: int) -> str:
    """What was made, and what was warned of."""
    video = result.samples.videos[0]
    frames, height, width = video.shape[:3]
    length = f"{frames} frames" if frames > 1 else "a still"
    told = f"{length} of {height} x {width} at {result.samples.fps:g} a second &middot; seed {seed}"
    told += f" &middot; made in {result.seconds:.1f} s"
    notes = "".join(f"<p class='note'>{escape(note)}</p>" for note in result.notes)
    return f"<p>{told}</p>{notes}"

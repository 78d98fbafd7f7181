"""The form: every task that is registered, what it takes, and what comes of it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from lightning_sora.errors import SoraError
from lightning_sora.models.latent_diffusion import LatentDiffusion
from lightning_sora.models.seen_sizes import ROPES
from lightning_sora.page import look
from lightning_sora.page.asking import FIRST, asked_of, described, label, line_of, number_before, samplers, tasks
from lightning_sora.page.bounds import STEPS, WAITING, ranges
from lightning_sora.page.studio import Made, Stopped, Studio
from lightning_sora.tasks import INPUTS
from lightning_sora.tasks.base import CLIPS, STILLS

REFUSED = f"This was not taken: {WAITING} requests wait already, or this page is older than its server. Try again soon."
FILES = {".mp4": "MP4", ".gif": "GIF", ".json": "JSON"}
COUNTED = ("extra", "times")
Update = dict[Any, Any]


def page(studio: Studio, served: Path) -> gr.Blocks:
    """The page of a model.

    Args:
        served: a folder whose files the page may show; what is made is copied there.
    """
    model = studio.model
    with gr.Blocks(title="lightning_sora", analytics_enabled=False) as blocks:
        gr.HTML(look.head(studio.loaded), elem_classes="head")
        with gr.Row(equal_height=False):
            with gr.Column(min_width=300):
                task = _plain(gr.Dropdown(tasks(model), value=FIRST, label="Task", elem_id="task"))
                about = gr.HTML(elem_classes="task")
                given, held = _given()
                prompt = gr.Textbox(label="Prompt", lines=2, max_lines=8, elem_id="prompt")
                seed = gr.Textbox("0", label="Seed", info="Of the noise", max_lines=1, elem_id="seed")
                fields = {"task": task, "prompt": prompt, "seed": seed, **_more(model)}
            with gr.Column(min_width=300):
                with gr.Row():
                    start = gr.Button("Make", variant="primary", min_width=100, elem_id="start")
                    stop = gr.Button("Stop", min_width=100, interactive=False, elem_id="stop")
                say = gr.HTML(look.idle(), elem_classes="say", elem_id="say")
                picture = gr.HTML(visible=False, elem_classes="stage", elem_id="picture")
                video = gr.Video(
                    show_label=False, height=look.STAGE, autoplay=True, loop=True, buttons=[], interactive=False,
                    visible=False, elem_classes="stage", elem_id="video",
                )  # fmt: skip
                with gr.Row():
                    files = {
                        ending: gr.DownloadButton(
                            told, visible=False, size="md", min_width=80, elem_id=f"get-{ending[1:]}"
                        )
                        for ending, told in FILES.items()
                    }
        names, there = [*fields, *given], gr.State(False)  # whether there is a video to go back to

        def work(request: gr.Request, before: bool, *values: Any) -> Iterator[Update]:
            back = {picture: gr.update(visible=False), video: gr.update(visible=before)}
            try:
                asked = asked_of(dict(zip(names, values, strict=True)))
                for told in studio.make(asked, str(request.session_hash)):
                    if isinstance(told, Made):
                        copies, still = _copies(told, served), len(told.samples.videos[0]) == 1
                        shown = look.picture(copies[".gif"], "what was made") if still else ""
                        yield {
                            say: look.made(told, asked.seed), there: not still,
                            picture: gr.update(value=shown, visible=still),
                            video: gr.update(value=None if still else str(copies[".mp4"]), visible=not still),
                            **{files[one]: gr.update(value=str(copy), visible=True) for one, copy in copies.items()},
                        }  # fmt: skip
                    elif told.preview is None:
                        yield {say: look.progress(told)}
                    else:
                        shown = look.picture(told.preview, "what is being made")
                        hidden = gr.update(visible=False)
                        yield {say: look.progress(told), picture: gr.update(value=shown, visible=True), video: hidden}
            except Stopped:
                yield {say: look.stopped(), **back}
            except Exception as problem:
                yield {say: look.problem(line_of(problem)), **back}

        def begin(request: gr.Request) -> tuple[Any, ...]:
            studio.wait(str(request.session_hash))
            return look.waiting(), off, on

        def end(request: gr.Request) -> None:
            studio.stop(str(request.session_hash))

        at_once: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        on, off = gr.update(interactive=True), gr.update(interactive=False)
        gr.on(
            [task.change, blocks.load],
            _of_task,
            [task],
            [about, *held.values(), *(given[one] for one in COUNTED)],
            **at_once,
        )
        began = start.click(begin, None, [say, start, stop], **at_once)
        made = began.then(
            work, [there, *fields.values(), *given.values()], [say, picture, video, there, *files.values()],
            concurrency_limit=1, show_progress="hidden", api_visibility="private",
        )  # fmt: skip
        made.failure(lambda: (look.problem(REFUSED), on, off), None, [say, start, stop], **at_once)
        made.then(lambda: (on, off), None, [start, stop], **at_once)
        stop.click(end, None, None, **at_once)
        blocks.unload(end)
    for component in blocks.blocks.values():
        _fetches_nothing(component)
    return blocks.queue(max_size=WAITING, default_concurrency_limit=1)


def _given() -> tuple[dict[str, Any], dict[str, Any]]:
    """A component of each input that a task may take, and what holds it, hidden until a task takes it."""
    made, held = {}, {}
    for name in INPUTS:
        common: dict[str, Any] = {"label": label(name), "elem_id": f"given-{name}"}
        with gr.Column(visible=False, min_width=160) as held[name]:
            if name in STILLS:
                still = gr.Image(type="filepath", sources=["upload", "clipboard"], height=220, buttons=[], **common)
                made[name] = _plain(still)
            elif name == "mask":
                made[name] = _plain(gr.File(file_types=["image", "video"], height=120, **common))
            elif name in CLIPS:
                made[name] = _plain(gr.Video(sources=["upload"], height=220, buttons=[], **common))
            elif name == "strength":
                made[name] = _plain(gr.Slider(0, 1, 0.6, step=0.05, **common))
            else:
                made[name] = gr.Textbox(max_lines=1, **common)
    return made, held


def _of_task(name: str) -> list[Any]:
    about, taken = described(name)
    shown = [gr.update(visible=there) for there in taken.values()]
    return [look.paragraph(about), *shown, *(number_before(one, name) for one in COUNTED)]


def _more(model: LatentDiffusion) -> dict[str, Any]:
    """How it is sampled, and how large."""
    own, at = model.sampling, ranges(model)
    with gr.Accordion("More", open=False, elem_id="more"):
        negative = gr.Textbox(label="Negative prompt", info="What is not to be seen", max_lines=4, elem_id="negative")
        guidance = gr.Textbox(
            label="Guidance", info="1 is off", placeholder=str(own.guidance), max_lines=1, elem_id="guidance"
        )
        steps = _plain(gr.Slider(1, STEPS, min(own.steps, STEPS), step=1, label="Steps", elem_id="steps"))
        sampler = _plain(gr.Dropdown(samplers(model), value=str(own.sampler), label="Sampler", elem_id="sampler"))
        sides = {
            name: _plain(
                gr.Slider(one.least, one.most, one.value, step=one.step, label=name.capitalize(), elem_id=name)
            )
            for name, one in at.items()
        }
        told = "Of sizes and lengths beyond those of the training; none takes them as they are"
        rope = _plain(gr.Dropdown(list(ROPES), value=own.rope, label="Positions", info=told, elem_id="rope"))
        fps = gr.Textbox(
            label="Frames per second", placeholder=f"{model.seen_sizes.fps:g}", max_lines=1, elem_id="fps"
        )  # fmt: skip
    return {
        "negative": negative, "guidance": guidance, "steps": steps, "sampler": sampler, **sides, "rope": rope,
        "fps": fps,
    }  # fmt: skip


def _copies(told: Made, served: Path) -> dict[str, Path]:
    """What is made, where it may be served from."""
    folder = served / told.file(".mp4").parent.name
    folder.mkdir(parents=True, exist_ok=True)
    return {one: Path(shutil.copyfile(told.file(one), folder / told.file(one).name)) for one in FILES}


def _plain(component: Any) -> Any:
    """Has a component hand on what the browser sends, so that what is wrong with it is told by one line of ours.

    Not by a class of its own: gradio would write a file beside its source. No event may update such a component but for
    its value, as gradio would make it anew.
    """
    component.preprocess = lambda payload: getattr(payload, "path", payload)
    return component


def _fetches_nothing(component: Any) -> None:
    """Has a component take no file that lies elsewhere, which gradio would fetch: also in the place of a text."""
    keep = component.async_move_resource_to_block_cache

    async def kept(path: str | Path | None) -> str | None:
        if "://" in str(path):
            raise SoraError(f"{path} lies elsewhere; upload a file")
        return await keep(path)

    component.async_move_resource_to_block_cache = kept

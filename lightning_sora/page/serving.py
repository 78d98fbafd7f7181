"""The page as a server on this machine."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import gradio as gr
from starlette.middleware import Middleware

from lightning_sora.errors import SoraError
from lightning_sora.lab.models import load_video_model
from lightning_sora.page.bounds import UPLOAD
from lightning_sora.page.form import page
from lightning_sora.page.guard import Guard, is_loopback
from lightning_sora.page.look import FONTS, MONO, STYLE
from lightning_sora.page.studio import Studio
from lightning_sora.plugins import load_packages, load_plugins
from lightning_sora.writing import check_folder


def serve(
    model: str | Path,
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    out: str | Path | None = None,
    plugins: Sequence[str] = (),
    device: str | None = None,
    tell: Callable[[str], None] = print,
) -> None:
    """Serves the page of a model until Ctrl-C.

    Args:
        model: a checkpoint of a LitDiT, the folder of its run, one that ``save`` wrote, or the name of a model that
            comes with the package.
        host: address to listen at; whoever reaches it may use the page, without a password.
        port: None for the first free one from 7860 on.
        out: the folder of what is made; None for one that goes when the page does.
        plugins: files that register parts; their tasks are on the page, too.
        device: None for CUDA where there is one.
        tell: hears where the page is.

    Raises:
        SoraError: no such model, no such port, or a folder that cannot be written to.
    """
    # Ended by SIGTERM, it must still remove its folder.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    load_packages()
    load_plugins(plugins)
    if out is not None:
        check_folder("--out", Path(out))
    loaded = load_video_model(model, device)
    with tempfile.TemporaryDirectory(prefix="lightning_sora_page_") as folder:
        studio = Studio(loaded, Path(folder) / "made" if out is None else Path(out), plugins)
        with running(studio, Path(folder), host, port) as address:
            where = "gone when this ends; download what you want, or give --out" if out is None else f"in {out}"
            open_to_all = "" if is_loopback(host) else f"whoever reaches {host} may use it: there is no password\n"
            tell(f"{address}\n{open_to_all}what is made is {where}\nCtrl-C stops it")
            try:
                threading.Event().wait()
            except KeyboardInterrupt:
                return  # the usual way to leave


@contextmanager
def running(studio: Studio, folder: Path, host: str = "127.0.0.1", port: int | None = None) -> Iterator[str]:
    """Serves a page meanwhile, and yields its address.

    Args:
        folder: of all that is served beside the page itself: uploads, and copies of what is made.

    Raises:
        SoraError: no such port.
    """
    served = folder / "served"
    served.mkdir()
    before = dict(os.environ)
    # The page is as it is described, whatever is set for other pages.
    for name in [name for name in os.environ if name.startswith("GRADIO_")]:
        del os.environ[name]
    os.environ |= {
        "GRADIO_TEMP_DIR": str(served), "GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": ",".join(filter(None, (os.environ.get("NO_PROXY"), "127.0.0.1", "localhost"))),
    }  # fmt: skip
    try:
        blocks = page(studio, served / "copies")
        try:
            _, address, _ = blocks.launch(
                server_name=host, server_port=port, share=False, inbrowser=False, prevent_thread_lock=True, quiet=True,
                footer_links=[], run_history=False, max_file_size=UPLOAD, enable_monitoring=False, ssr_mode=False,
                pwa=False, mcp_server=False, num_workers=0, root_path="", theme=_theme(), css=STYLE,
                app_kwargs={"middleware": [Middleware(Guard, loopback=is_loopback(host))]},
            )  # fmt: skip
        except OSError as problem:
            where = "7860 and the next hundred" if port is None else str(port)
            raise SoraError(f"port {where} at {host} cannot be used ({problem}); give another --port") from problem
        try:
            yield address
        finally:
            blocks.close(verbose=False)
    finally:
        os.environ.clear()
        os.environ.update(before)


def _theme() -> gr.themes.Base:
    return gr.themes.Base(primary_hue="indigo", secondary_hue="indigo", neutral_hue="slate", font=FONTS, font_mono=MONO)

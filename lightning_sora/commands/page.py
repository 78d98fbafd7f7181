"""page: prompts and all tasks in a browser, by a trained model."""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

from lightning_sora.errors import SoraError
from lightning_sora.shipped import MODEL


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser("page", help="make videos in a browser", description=__doc__)
    parser.add_argument(
        "--ckpt", dest="model", metavar="PATH", default=MODEL,
        help="checkpoint of a LitDiT, its run's folder, or a saved model; default: that of the package",
    )  # fmt: skip
    parser.add_argument(
        "--host", default="127.0.0.1",
        help="address to listen at (default: %(default)s, this machine alone); whoever reaches it may use the page",
    )  # fmt: skip
    parser.add_argument("--port", type=int, help="default: the first free one from 7860")
    parser.add_argument("--out", metavar="FOLDER", help="keep what is made there; default: until the page ends")
    parser.add_argument("--plugins", action="append", default=[], metavar="FILE", help="a file that registers parts")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 ...; default: cuda where there is one")


def run(args: argparse.Namespace) -> int:
    """Serves the page until Ctrl-C."""
    if args.port is not None and not 0 < args.port < 2**16:
        raise SoraError(f"--port {args.port} must lie between 1 and {2**16 - 1}")
    try:
        from lightning_sora.page.serving import serve
    except ModuleNotFoundError as problem:
        if problem.name != "gradio":
            raise
        raise SoraError("gradio is not installed: pip install 'lightning-sora[page]'") from None
    serve(
        args.model, host=args.host, port=args.port, out=args.out, plugins=args.plugins, device=args.device,
        tell=partial(print, flush=True),
    )  # fmt: skip
    return 0

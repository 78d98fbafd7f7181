"""export: the weights of a run in the form that others read: mlflow, from_pretrained, diffusers, LoRA, ComfyUI."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from lightning_sora.commands.arguments import whole
from lightning_sora.errors import SoraError
from lightning_sora.shipped import MODEL

LIMITS = ("frames", "height", "width", "steps", "prompts")


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "export", help="write the weights of a run in the form of others", description=__doc__
    )
    parser.add_argument(
        "run", nargs="?", metavar="RUN", help="folder, checkpoint or name, as `sample` takes it; default: that of the "
        "package",
    )  # fmt: skip
    parser.add_argument("--ckpt", dest="model", metavar="PATH", help="the same, by a flag")
    parser.add_argument(
        "--to", default="mlflow", metavar="FORM",
        help="mlflow, to be served (default); pretrained, a folder of config.json and safetensors; diffusers, a "
        "folder; lora, the adapters as diffusers reads them; comfyui, one file",
    )  # fmt: skip
    parser.add_argument("--out", required=True, metavar="FOLDER", help="that is not there yet")
    parser.add_argument("--stored", metavar="TYPE", help="float16, bfloat16 or float32, of the weights in the files")
    parser.add_argument("--push", metavar="OWNER/NAME", help="of pretrained: upload it to a hub, too")
    parser.add_argument("--base", metavar="DIR", help="pipeline that the rest is of; or where it was moved to")
    parser.add_argument("--text", metavar="SPEC", help="encoder that made the embeddings which the run was trained on")
    parser.add_argument("--link", action="store_true", help="of diffusers: link to what is the base's, not copy it")
    for name in LIMITS:
        told = "100" if name == "steps" else "4" if name == "prompts" else "twice as trained"
        parser.add_argument(f"--max-{name}", type=whole, metavar="N", help=f"of a request; default: {told}")
    parser.add_argument("--log", action="store_true", help="keep it in the mlflow run of the training, too")
    parser.add_argument("--register", metavar="NAME", help="with --log: make it a version of NAME in mlflow's registry")
    parser.add_argument("--uri", help="store; default: MLFLOW_TRACKING_URI, or else sqlite:///mlflow.db")
    parser.add_argument("--plugins", action="append", default=[], metavar="FILE", help="a file that registers parts")


def run(args: argparse.Namespace) -> int:
    """Writes the files, and prints what they are and how they are loaded."""
    from lightning_sora.lab.exporting import Options, exported

    if args.run is not None and args.model is not None:
        raise SoraError(f"{args.run} and --ckpt {args.model} are two models; name one")
    limits = {name: most for name in LIMITS if (most := getattr(args, f"max_{name}")) is not None}
    options = Options(
        limits, args.uri, args.log, args.register, base=args.base, stored=args.stored, link=args.link, push=args.push,
        text=args.text,
    )  # fmt: skip
    made = exported(args.run or args.model or MODEL, args.out, args.to, options, args.plugins)
    sys.stdout.write("".join(f"{line}\n" for line in made.told))
    return 0

"""Files of the official PyTorch codes, in and out.

python -m edf_jax.convert import-experts buffers/ --to=experts --network=ConvNetD5 --classes=10 \\
    --size=128                                     replay_buffer_<n>.pt -> a store of experts
python -m edf_jax.convert export-experts runs/demo/experts --to=buffers    and back
python -m edf_jax.convert import-set logged/ --to=set.safetensors --dataset=imagenette
                          images_best.pt, labels_best.pt, lr_best.pt -> a distilled set
python -m edf_jax.convert export-set runs/demo --to=logged                 and back
python -m edf_jax.convert import-weights resnet18.pth --to=resnet18.safetensors
                          torchvision's ResNet-18 -> a file for cam.weights, read without PyTorch

Files are read with weights-only loading. `experts.dir` takes an imported store. PyTorch is needed:
pip install -e .[interop]
"""

from __future__ import annotations

import argparse
import pathlib
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

from edf_jax.convert import distilled_set, experts
from edf_jax.export.write import export_run
from edf_jax.models import pretrained, torch_files
from edf_jax.runtime import console, storage
from edf_jax.runtime.errors import UserError


def _import_experts(options: argparse.Namespace) -> str:
    files = experts.official_files(options.source)
    info = experts.import_experts(files, options.to, _settings(options))
    return (
        f"{options.to}: {info['num_experts']} experts of {info['settings']['experts.epochs']} "
        f"epochs; --config.experts.dir={options.to} uses them"
    )


def _export_experts(options: argparse.Namespace) -> str:
    names = experts.export_experts(options.source, options.to, _settings(options))
    return f"{options.to}: {names[0]}" + (f" to {names[-1]}" if len(names) > 1 else "")


def _import_set(options: argparse.Namespace) -> str:
    _check_safetensors(options.to)
    if not (pathlib.Path(options.source) / "images_best.pt").is_file():
        raise UserError(
            f"{options.source} is no folder with images_best.pt, labels_best.pt and lr_best.pt"
        )
    description = None
    if options.dataset:
        description = distilled_set.describe_dataset(options.dataset)
    elif options.like:
        description = distilled_set.describe_like(options.like)
    result = distilled_set.import_set(options.source, description)
    with torch_files.appearing(options.to) as temporary:
        result.save(temporary)
    return f"{options.to}: {len(result.images)} images of {result.labels.shape[1]} classes"


def _export_set(options: argparse.Namespace) -> str:
    return str(export_run(options.source, "torch", options.to))


def _import_weights(options: argparse.Namespace) -> str:
    import numpy as np
    from safetensors.numpy import save_file

    _check_safetensors(options.to)
    classes = options.classes or pretrained.IMAGENET_CLASSES
    network, _, _ = pretrained.load_cam_network(
        options.source, image_shape=(224, 224, 3), num_classes=(classes,)
    )
    state, _ = pretrained.read_state_dict(options.source)
    state = {name: np.ascontiguousarray(tensor) for name, tensor in state.items()}
    with (
        torch_files.appearing(options.to) as temporary,
        storage.writing(pathlib.Path(options.to)),
    ):
        save_file(state, temporary)
    return f"{options.to}: {network.name}, {classes} classes; --config.cam.weights={options.to}"


def _check_safetensors(to: str) -> None:
    if pathlib.Path(to).suffix != ".safetensors":
        raise UserError(f"--to={to}: give a file that ends in .safetensors")


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    """The network that the flags name, as a store's settings."""
    settings = {
        "model.name": options.network,
        "num_classes": options.classes,
        "image_shape": options.size and [*options.size, options.channels],
        **{f"model.{name}": getattr(options, name) for name in experts.NETWORK_OPTIONS},
    }
    return {name: value for name, value in settings.items() if value}


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([1-9]\d*)(?:x([1-9]\d*))?", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is no size: say 128, or 96x128")
    return int(match[1]), int(match[2] or match[1])


def _positive(text: str) -> int:
    if not re.fullmatch(r"[1-9]\d*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no positive whole number")
    return int(text)


# By command: what does it, what it is about, what it reads and what it writes.
_COMMANDS: dict[str, tuple[Callable[[argparse.Namespace], str], str, str, str]] = {
    "import-experts": (
        _import_experts,
        "official expert files to a store of experts",
        "replay_buffer_<n>.pt in order, or their folder",
        "the store's folder, not there yet",
    ),
    "export-experts": (
        _export_experts,
        "a store of experts to official files, one for each group",
        "a store's folder, such as runs/demo/experts",
        "folder for replay_buffer_<n>.pt, not there yet",
    ),
    "import-set": (
        _import_set,
        "an official distilled set to ours",
        "folder with images_best.pt, labels_best.pt and lr_best.pt",
        "a .safetensors file, not there yet",
    ),
    "export-set": (
        _export_set,
        "our distilled set to the official files (as edf_jax.export --to=torch)",
        "a run's folder or a .safetensors file",
        "a folder, new or of an earlier export",
    ),
    "import-weights": (
        _import_weights,
        "torchvision's ResNet-18 to a file for cam.weights",
        "its state dict (.pth or .safetensors)",
        "a .safetensors file, not there yet",
    ),
}


def _parser() -> console.Parser:
    parser = console.Parser(
        prog="python -m edf_jax.convert",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands, subs = parser.add_subparsers(metavar="COMMAND", required=True), {}
    for name, (function, about, source, to) in _COMMANDS.items():
        subs[name] = commands.add_parser(name, help=about, description=about, allow_abbrev=False)
        subs[name].add_argument(
            "source", help=source, nargs="+" if name == "import-experts" else None
        )
        subs[name].add_argument("--to", required=True, help=to)
        subs[name].set_defaults(run=function)
    _add_network(subs["import-experts"], required=True)
    _add_network(subs["export-experts"], required=False)
    data = subs["import-set"].add_mutually_exclusive_group()
    data.add_argument("--dataset", help="whose class names and constants: cifar10, imagenette ...")
    data.add_argument(
        "--like", help="another distilled set or run of the same data (needed with ZCA)"
    )
    subs["import-weights"].add_argument(
        "--classes", type=_positive, help="how many it has (default 1000)"
    )
    return parser


def _add_network(parser: argparse.ArgumentParser, *, required: bool) -> None:
    """The flags that name the experts' network."""
    known = "" if required else " (default: as the store says)"
    add = parser.add_argument
    add("--network", required=required, help=f"from the registry, such as ConvNetD5{known}")
    add("--classes", type=_positive, required=required, help=f"how many{known}")
    add("--size", type=_size, required=required, help=f"of the images: 128, or 96x128{known}")
    add("--channels", type=_positive, default=3, help="of the images (default 3)")
    for name in experts.NETWORK_OPTIONS:
        kind = _positive if name in ("width", "depth") else str
        add(f"--{name}", type=kind, help="default: the network's")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status (2 for a user's mistake, told in one line)."""

    def run() -> int:
        options = _parser().parse_args(arguments)
        print(options.run(options))
        return 0

    return console.exit_status(run, name="edf_jax.convert")


if __name__ == "__main__":
    sys.exit(main())

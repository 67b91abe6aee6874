"""Options that several commands share, and the folder of a run."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated

import typer

PRESET_HELP = (
    "Size, colors, scaling and alignment of a known family, for files that do not record them: insightface, arcface, "
    "adaface, sface, facenet, dlib, sphereface, or auto (the best on a few pairs)."
)
SCALE_HELP = "The input is (pixel / 255 - mean) / std: one number, or one for each channel, separated by commas."
MODEL_HELP = (
    "weights that occfast train wrote (.safetensors); ONNX (.onnx); TorchScript (.pt); other weights (.safetensors, "
    ".pt or .pth) with --network; torch.export (.pt2) with --trust; a folder with one of these; or module:function."
)

Network = Annotated[
    str | None,
    typer.Option(
        help="Architecture, for weights that do not record it: paper, resnet18, … or module:function.",
        rich_help_panel="Network",
    ),
]
Preset = Annotated[str | None, typer.Option(help=PRESET_HELP, rich_help_panel="Network")]
Size = Annotated[
    str | None,
    typer.Option(
        help="Height x width of the network's input.", show_default="as the weights record", rich_help_panel="Network"
    ),
]
Color = Annotated[
    str | None, typer.Option(help="gray, RGB or BGR.", show_default="as the weights record", rich_help_panel="Network")
]
Mean = Annotated[
    str | None, typer.Option(help=SCALE_HELP, show_default="as recorded, else 0.5", rich_help_panel="Network")
]
Std = Annotated[str | None, typer.Option(help="See --mean.", rich_help_panel="Network")]
Template = Annotated[
    str | None,
    typer.Option(help="Align faces to this template.", show_default="as the weights record", rich_help_panel="Images"),
]
Resize = Annotated[
    bool, typer.Option("--resize", help="Resize cropped images instead of aligning them.", rich_help_panel="Images")
]
Aligned = Annotated[
    bool,
    typer.Option(
        "--aligned", help="The images are aligned as the weights expect; only resize them.", rich_help_panel="Images"
    ),
]
ValidationOf = Annotated[
    Path | None,
    typer.Option(
        "--validation-of",
        help="Folder of a run of occfast train on this data set: take only the images that it kept out of training.",
        show_default=False,
        rich_help_panel="Images",
    ),
]
Trust = Annotated[
    bool,
    typer.Option(
        "--trust",
        help="Run code that a file contains or names: a pickle or module:function.",
        rich_help_panel="Network",
    ),
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Continue an unfinished run in --output.", rich_help_panel="Run")
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace an earlier run in --output.", rich_help_panel="Run")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.", rich_help_panel="Run")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.", rich_help_panel="Run")]


def only_run(output: Path, command: str, writes: str) -> AbstractContextManager[object]:
    """Hold the lock of a run's folder; a folder that can't be written is refused before any work.

    Args:
        output: The folder.
        command: Name of the command, for the lock.
        writes: What another run does, such as "writes maps into".
    """
    from ..files import locked

    def busy(holder: str) -> Exception:
        return ValueError(f"--output: {holder} {writes} {output}; wait for it or choose another folder")

    for path in (output, *output.parents):
        if path.exists() and not path.is_dir():
            under = "" if path == output else f" under {path}, which is a file"
            raise ValueError(f"--output: expected a folder, got {output}{under or ', which is a file'}")
    return locked(output / f".{command}.lock", busy)


def check_resume(resume: bool, overwrite: bool) -> None:
    """Refuse two options that contradict each other."""
    if resume and overwrite:
        raise ValueError("--resume: not valid together with --overwrite")


def check_output(output: Path, written: dict[str, str], resume: bool, overwrite: bool) -> None:
    """Refuse to lose an earlier run, of which the folder holds one of the files named; with what each is."""
    check_resume(resume, overwrite)
    for name, what in written.items():
        if (output / name).exists() and not resume and not overwrite:
            raise ValueError(
                f"{output / name} is {what}: --resume continues the run, --overwrite replaces it; or choose another "
                "--output"
            )

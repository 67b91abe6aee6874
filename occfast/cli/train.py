"""``occfast train`` and ``occfast export``: train networks by recipes and write them as ONNX."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

if TYPE_CHECKING:
    from ..models import Preprocessing
    from ..train import Result


def train(
    recipe: Annotated[
        str | None,
        typer.Argument(
            help="Packaged recipe (A, A20x40, C, pdsn, ...) or YAML file.",
            show_default="with --resume, that of the run",
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            help="Settings that replace the recipe's, e.g. data.name=folder data.root=faces epochs=10. --show lists "
            "all of them.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder for weights, logs and checkpoints.", show_default="runs/RECIPE"),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue an unfinished run in --output from its last checkpoint.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier run in --output.")] = False,
    data_changed: Annotated[
        bool,
        typer.Option("--data-changed", help="With --resume: continue although people, images or their split changed."),
    ] = False,
    trust: Annotated[
        bool,
        typer.Option(
            "--trust", help="Run code (module:function) that a recipe file or weights file names, not only you."
        ),
    ] = False,
    seed: Annotated[
        int | None, typer.Option("--seed", help="Random seed. Shorthand for seed=N.", show_default=False)
    ] = None,
    device: Annotated[
        str | None,
        typer.Option("--device", help="Device: auto, cpu or cuda. Shorthand for device=NAME.", show_default=False),
    ] = None,
    show: Annotated[bool, typer.Option("--show", help="Print the recipe with all settings and exit.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Train a face recognizer by a recipe.

    The first run: occfast train A data.name=folder data.root=FACES, where FACES has one folder of images per person.
    Recipes align faces by landmarks: find them with occfast data landmarks FACES FACES/landmarks.csv, or, for images
    that are aligned already, add data.template=null data.size=[100,100].

    --resume continues a run that was stopped or killed, with the same result. On several processes or machines:
    torchrun --nproc-per-node 2 -m occfast train RECIPE ...
    """
    from ..train import recipe as recipes

    given = list(overrides or [])
    if recipe is not None and "=" in recipe:
        given, recipe = [recipe, *given], None
    given += [f"{key}={value}" for key, value in (("seed", seed), ("device", device)) if value is not None]
    if recipe is None:
        written = None if output is None else output / "recipe.yaml"
        if not resume or written is None or not written.is_file():
            raise ValueError(
                f"recipe: expected a YAML file or one of {', '.join(recipes.names())} "
                "(or --resume with the --output of a run)"
            )
        recipe = str(written)
    if show:
        typer.echo(recipes.show(recipe, given), nl=False)
        return
    from ..train import train as run

    result = run(
        recipes.load(recipe, given, trust=trust),
        output or Path("runs") / Path(recipe).stem,
        resume=resume,
        overwrite=overwrite,
        data_changed=data_changed,
        progress=not quiet,
    )
    if not result.main:
        return
    typer.echo(json.dumps(asdict(result)) if as_json else _summary(result))
    if result.stopped == "interrupted":
        raise typer.Exit(130)


def _summary(result: Result) -> str:
    best = ""
    if result.best is not None:
        over = "" if result.pairs is None else f" over {result.pairs:,} pairs"
        best = f", {result.metric} {100 * result.best:.2f} %{over} after {result.best_epoch} epochs"
    left_out = f", {result.left_out:,} images of people with too few left out" if result.left_out else ""
    why = {"": "", "early": ", stopped early", "interrupted": ", interrupted: continue with --resume"}[result.stopped]
    return f"{result.weights}: {result.epochs} epochs{best}{left_out}{why}"


def export(
    weights: Annotated[
        Path, typer.Argument(help="Weights file, such as best.safetensors of a run; .pt and .pth with --network.")
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="ONNX file.", show_default="WEIGHTS.onnx")
    ] = None,
    gives: Annotated[
        str, typer.Option("--gives", help="Output of the network: features (to compare faces) or logits.")
    ] = "features",
    opset: Annotated[int, typer.Option("--opset", help="Version of the ONNX operator set.", min=18)] = 18,
    tolerance: Annotated[
        float,
        typer.Option(
            "--tolerance", help="Largest difference allowed between onnxruntime and PyTorch, over the largest output."
        ),
    ] = 1e-4,
    network: Annotated[
        str | None,
        typer.Option(
            "--network",
            help="Architecture, for weights files that do not record it: paper, resnet18, ... or module:function.",
            show_default=False,
        ),
    ] = None,
    classes: Annotated[
        int | None, typer.Option("--classes", help="Number of classes of --network.", min=1, show_default=False)
    ] = None,
    size: Annotated[
        str | None,
        typer.Option("--size", help="Height x width of the input of --network, e.g. 112x112.", show_default=False),
    ] = None,
    color: Annotated[
        str | None, typer.Option("--color", help="Input of --network: gray, RGB or BGR.", show_default=False)
    ] = None,
    mean: Annotated[
        str | None,
        typer.Option(
            "--mean",
            help="Input of --network is (x / 255 - mean) / std: one number, or one for each channel, separated by "
            "commas.",
            show_default="0.5",
        ),
    ] = None,
    std: Annotated[str | None, typer.Option("--std", help="See --mean.", show_default="0.5")] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset",
            help="Size, colors, scaling and alignment of --network by the name of a known family: insightface, "
            "arcface, adaface, sface, facenet, dlib or sphereface.",
            show_default=False,
        ),
    ] = None,
    trust: Annotated[
        bool, typer.Option("--trust", help="Run the code of a network that the file names as module:function.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Write a trained network as ONNX, for batches of any size.

    The file is written only if onnxruntime and PyTorch agree. Its metadata record how images are prepared: size,
    colors, scaling and alignment.
    """
    from ..train import export_onnx, load_network

    described = {"--classes": classes, "--size": size, "--color": color, "--mean": mean, "--std": std}
    described["--preset"] = preset
    if network is None:
        if stated := [name for name, value in described.items() if value is not None]:
            raise ValueError(f"{stated[0]}: only valid with --network, since the weights record it")
        trained = load_network(weights, trust=trust)
    else:
        preprocessing = _preprocessing(size, color, mean, std, preset)
        trained = load_network(weights, network=network, classes=classes, preprocessing=preprocessing)
    result = export_onnx(
        trained, output or weights.with_suffix(".onnx"), output=cast("Any", gives), opset=opset, tolerance=tolerance
    )
    if as_json:
        typer.echo(json.dumps(asdict(result)))
    else:
        typer.echo(
            f"{result.path}: {result.size} {result.output} per image; onnxruntime differs from PyTorch by at most "
            f"{result.largest_difference:.1e} of the largest output"
        )


def _preprocessing(
    size: str | None, color: str | None, mean: str | None, std: str | None, preset: str | None
) -> Preprocessing:
    from ..models import Preprocessing
    from .networks import numbers, pair

    if preset is not None:
        return _of_preset(preset, {"--size": size, "--color": color, "--mean": mean, "--std": std})
    if size is None or color is None:
        raise ValueError(f"{'--size' if size is None else '--color'}: required with --network")
    stated = {"mean": numbers(mean, "--mean"), "std": numbers(std, "--std")}
    scale: dict[str, Any] = {name: value for name, value in stated.items() if value is not None}
    return Preprocessing(pair(size, "--size"), cast("Any", color), **scale)


def _of_preset(name: str, others: dict[str, str | None]) -> Preprocessing:
    from ..data import TEMPLATES, Alignment
    from ..models.presets import preset_named

    if stated := [option for option, value in others.items() if value is not None]:
        raise ValueError(f"{stated[0]}: not valid together with --preset, which states it")
    chosen = preset_named(name)
    if chosen.template is None:
        return chosen.preprocessing
    template = TEMPLATES[chosen.template]
    alignment = Alignment(template.name, template.size, template.points, template.transform, "repeat", None)
    return replace(chosen.preprocessing, alignment=alignment.as_dict())

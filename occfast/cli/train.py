"""``occfast train`` and ``occfast export``: networks from recipes, and out of the house."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer


def train(
    recipe: Annotated[
        str | None,
        typer.Argument(help="A packaged recipe (A, A20x40, C, pdsn, …) or a YAML file; with --resume that of the run."),
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Values over the recipe's: data.root=faces optimizer.learning_rate=0.1")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder of the run. [default: runs/RECIPE]")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the folder's last checkpoint.")] = False,
    seed: Annotated[int | None, typer.Option("--seed", help="As the override seed=N.", show_default=False)] = None,
    device: Annotated[
        str | None, typer.Option("--device", help="As the override device=auto|cpu|cuda.", show_default=False)
    ] = None,
    show: Annotated[bool, typer.Option("--show", help="Print the recipe with every default, and stop.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Write the result as JSON.")] = False,
) -> None:
    """Train a network by a recipe; a run that was stopped or killed goes on with --resume, to the same result.

    On several processes or machines: torchrun --nproc-per-node 2 -m occfast train RECIPE …
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

    result = run(recipes.load(recipe, given), output or Path("runs") / Path(recipe).stem, resume=resume)
    if not result.main:
        return
    if as_json:
        typer.echo(json.dumps(asdict(result)))
    else:
        best = "" if result.best is None else f", {result.metric} {100 * result.best:.2f} % after {result.best_epoch}"
        why = {"": "", "early": ", stopped early", "interrupted": ", interrupted: go on with --resume"}[result.stopped]
        typer.echo(f"{result.weights}: {result.epochs} epochs{best}{why}")
    if result.stopped == "interrupted":
        raise typer.Exit(130)


def export(
    weights: Annotated[Path, typer.Argument(help="best.safetensors of a run.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="[default: WEIGHTS.onnx]")] = None,
    gives: Annotated[str, typer.Option("--gives", help="features (for comparing faces) or logits.")] = "features",
    tolerance: Annotated[
        float, typer.Option("--tolerance", help="Largest difference from PyTorch, over the largest answer.")
    ] = 1e-4,
    trust: Annotated[bool, typer.Option("--trust", help="Run the code of a network that is module:function.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Write the result as JSON.")] = False,
) -> None:
    """Write a trained network as ONNX with a batch of any size, checked with onnxruntime against PyTorch.

    How images are prepared (size, colors, scaling, alignment) is in the file's metadata.
    """
    from ..train import export as exporting
    from ..train.weights import load

    result = exporting.export(
        load(weights, trust=trust), output or weights.with_suffix(".onnx"), output=gives, tolerance=tolerance
    )
    if as_json:
        typer.echo(json.dumps(asdict(result)))
    else:
        typer.echo(
            f"{result.path}: {result.size} {result.output} an image; onnxruntime differs from PyTorch by at most "
            f"{result.largest_difference:.1e} of the largest"
        )

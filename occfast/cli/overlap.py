"""``occfast data overlap``: find people who occur in a training set and in a test set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..progress import printable

if TYPE_CHECKING:
    from torch import Tensor


def overlap(
    first: Annotated[
        str, typer.Argument(metavar="A", help="Training set, from which people are to be excluded.", show_default=False)
    ],
    second: Annotated[
        str, typer.Argument(metavar="B", help="Test set, in which these people may occur.", show_default=False)
    ],
    weights: Annotated[
        Path | None,
        typer.Option("--model", "-m", help="Weights of a network (.safetensors), to compare faces as well as names."),
    ] = None,
    threshold: Annotated[
        float, typer.Option(help="Smallest cosine similarity of two people's mean features.", min=-1, max=1)
    ] = 0.6,
    images: Annotated[int, typer.Option(help="Use at most this many images of each person.", min=1)] = 10,
    resize: Annotated[
        bool, typer.Option("--resize", help="Resize images instead of aligning them, if they are cropped already.")
    ] = False,
    batch_size: Annotated[int, typer.Option(help="Images in a batch.", min=1)] = 64,
    workers: Annotated[int, typer.Option(help="Number of processes that read images.", min=0)] = 0,
    device: Annotated[str, typer.Option(help="Device: auto, cpu or cuda.")] = "auto",
    trust: Annotated[
        bool, typer.Option("--trust", help="Allow code to run if the weights name a network as module:function.")
    ] = False,
    output: Annotated[Path, typer.Option("--output", "-o", help="CSV file of the people to exclude.")] = Path(
        "exclude.csv"
    ),
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Find people who occur in two data sets, and write a list of people to exclude.

    Names are compared regardless of case, accents and punctuation; with --model, faces are compared as well. Inspect
    people found by similarity, because a good threshold depends on the network.
    """
    from ..data import open_dataset
    from ..data.overlap import shared_faces, shared_names, write_shared

    a, b = open_dataset(first), open_dataset(second)
    found = shared_names(a.people, b.people)
    if weights is not None:
        from ..evaluate import embed
        from .networks import load_recognizer, prepared

        network, preprocessing = load_recognizer(str(weights), a, trust=trust, device=device)
        sides = [
            embed(
                network.embed,
                prepared(source, preprocessing, None, resize),
                preprocessing,
                indices=_some_of_each(source.labels, images),
                batch_size=batch_size,
                workers=workers,
                progress=not quiet,
                title=name,
            )
            for name, source in ((first, a), (second, b))
        ]
        sides[0].require(sides[1])
        known = {(entry.person, entry.matches) for entry in found}
        alike = shared_faces(
            sides[0].features,
            sides[0].labels,
            a.people,
            sides[1].features,
            sides[1].labels,
            b.people,
            threshold=threshold,
        )
        found += [entry for entry in alike if (entry.person, entry.matches) not in known]
    write_shared(output, found)
    people = len({entry.person for entry in found})
    if as_json:
        typer.echo(json.dumps({"people": people, "shared": [vars(entry) for entry in found], "list": str(output)}))
        return
    for entry in found:
        how = entry.found_by if entry.similarity is None else f"similarity {entry.similarity:.2f}"
        typer.echo(printable(f"{entry.person}  =  {entry.matches}  ({how})"))
    typer.echo(f"{people} of {len(a.people)} people of {first} are in {second}: {output}")


def _some_of_each(labels: Tensor, count: int) -> Tensor:
    """Return the numbers of the first ``count`` images of each person."""
    import torch

    order = labels.argsort(stable=True)
    person = labels[order]
    place = torch.arange(len(order)) - torch.searchsorted(person, person)
    return order[place < count]

"""``occfast audit``: what covering costs a recognizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..progress import printable
from . import options
from .networks import load_recognizer, pair, prepared

if TYPE_CHECKING:
    from ..audit import Audit, Covering
    from ..data import FaceDataset

REPORT, _WORK = "audit.json", "work"
_READ = 16  # faces whose reading is timed

# Options of audits, for one recognizer or two.
Faces = Annotated[
    str,
    typer.Argument(
        help="Faces: a folder with one subfolder per person (photographs of any size), a .rec, .npz or .bin file, "
        "or lfw, orl, ar, ar10p or celeba (with :PATH if it is not in $OCCFAST_DATA).",
        show_default=False,
    ),
]
Cover = Annotated[
    list[str] | None,
    typer.Option(
        help="Covering, as in evaluate --occlude: sunglasses, mask:surgical, noisy:20x40, … Repeat it for more.",
        show_default="glasses, masks, scarf, hands, bands and a noisy block",
        rich_help_panel="Coverings",
    ),
]
Both = Annotated[bool, typer.Option("--both", help="Cover both images of a pair.", rich_help_panel="Coverings")]
Curve = Annotated[
    bool, typer.Option("--curve/--no-curve", help="Also cover growing parts of the face.", rich_help_panel="Coverings")
]
MapImages = Annotated[
    int, typer.Option(help="Images of the occlusion map; 0: no map.", min=0, rich_help_panel="Coverings")
]
Fmr = Annotated[
    float, typer.Option(help="False match rate on uncovered faces that sets the threshold.", rich_help_panel="Rates")
]
Bootstrap = Annotated[
    int, typer.Option(help="Resamples of people for the intervals.", min=100, rich_help_panel="Rates")
]
Limit = Annotated[
    int | None,
    typer.Option(help="At most this many images, of people drawn at random; 0: all.", min=0, rich_help_panel="Images"),
]
Landmarks = Annotated[
    Path | None,
    typer.Option(
        help="CSV file with landmarks, as occfast data landmarks writes it.",
        show_default="those of the data, else found by MTCNN if faces have to be aligned",
        rich_help_panel="Images",
    ),
]
Device = Annotated[str, typer.Option(help="Device: auto, cpu or cuda.", rich_help_panel="Run")]
Seed = Annotated[int, typer.Option(help="Random seed for coverings, people and resamples.", rich_help_panel="Run")]


def audit(
    model: Annotated[str, typer.Argument(help=f"Recognizer: {options.MODEL_HELP}", show_default=False)],
    faces: Faces,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the report.")] = Path("audit"),
    cover: Cover = None,
    both: Both = False,
    curve: Curve = True,
    map_images: MapImages = 32,
    fmr: Fmr = 1e-3,
    groups: Annotated[
        Path | None,
        typer.Option(
            help="CSV file with the columns name (of a person or an image) and group: rates for each group.",
            show_default=False,
            rich_help_panel="Rates",
        ),
    ] = None,
    bootstrap: Bootstrap = 1000,
    limit: Limit = 2000,
    network: options.Network = None,
    preset: options.Preset = None,
    size: options.Size = None,
    color: options.Color = None,
    mean: options.Mean = None,
    std: options.Std = None,
    template: options.Template = None,
    landmarks: Landmarks = None,
    resize: options.Resize = False,
    aligned: options.Aligned = False,
    device: Device = "auto",
    seed: Seed = 0,
    resume: options.Resume = False,
    overwrite: options.Overwrite = False,
    trust: options.Trust = False,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Measure what covered faces cost a recognizer, and write one page.

    Writes audit.html, audit.md, audit.json, curve.csv and map.npz.

    The threshold is set on uncovered faces and kept: how many genuine pairs does it reject with sunglasses, a mask, a
    scarf?
    """
    with options.only_run(output, "audit", "writes an audit into"):
        options.check_output(output, {REPORT: "an audit", _WORK: "unfinished work"}, resume, overwrite)
        candidate = Candidate(
            model,
            faces,
            output / _WORK / "landmarks.csv",
            network=network,
            preset=preset,
            size=size,
            color=color,
            mean=mean,
            std=std,
            template=template,
            landmarks=landmarks,
            resize=resize,
            aligned=aligned,
            trust=trust,
            device=device,
            resume=resume,
            quiet=quiet,
        )
        result = candidate.audit(
            output / _WORK,
            coverings=coverings_of(cover, seed),
            fmr=fmr,
            both=both,
            limit=limit or None,
            curve=curve,
            map_images=map_images,
            groups=None if groups is None else _groups(groups),
            resamples=bootstrap,
            seed=seed,
            resume=not overwrite,
        )
        page = result.write(output)
    if as_json:
        typer.echo(json.dumps(result.as_dict()))
        return
    for line in (*result.sentences, str(page)):
        typer.echo(printable(line))


class Candidate:
    """A recognizer of the command line with its faces, prepared for an audit.

    Args:
        model, faces: As on the command line.
        found: File for the landmarks that MTCNN finds where they are needed.
        network, preset, size, color, mean, std, template, landmarks, resize, aligned, trust, device: As on the command
            line.
        resume: Whether landmarks in that file are used again.
        quiet: Whether no progress is shown.
        photographs: Those to take in place of what ``faces`` names.
    """

    def __init__(
        self,
        model: str,
        faces: str,
        found: Path,
        *,
        network: str | None,
        preset: str | None,
        size: str | None,
        color: str | None,
        mean: str | None,
        std: str | None,
        template: str | None,
        landmarks: Path | None,
        resize: bool,
        aligned: bool,
        trust: bool,
        device: str,
        resume: bool,
        quiet: bool,
        photographs: FaceDataset | None = None,
    ) -> None:
        from ..data import open_dataset

        self.model, self._faces, self._quiet = model, faces, quiet
        self._notes: list[str] = []
        source = open_dataset(faces, landmarks=landmarks) if photographs is None else photographs
        how_aligned: dict[str, Any] = {"template": template, "resize": resize, "aligned": aligned}
        as_is = resize or aligned or source.alignment is not None

        def find(photographs: FaceDataset) -> FaceDataset:
            nonlocal source
            if not as_is and photographs.landmarks is None:
                source = self._with_faces(photographs, found, resume)
            return source

        self.recognizer, self.preprocessing = load_recognizer(
            model,
            source,
            network=network,
            size=None if size is None else pair(size, "--size"),
            color=color,
            mean=mean,
            std=std,
            preset=preset,
            trust=trust,
            device=device,
            quiet=quiet,
            find=find,
            **how_aligned,
        )
        if self.recognizer.note:
            typer.echo(f"{model}: {self.recognizer.note}", err=True)
        if not as_is:
            if not (template or self.recognizer.template or self.preprocessing.alignment):
                raise ValueError(_unaligned(model, preset, recorded=self.recognizer.preprocessing is not None))
            find(source)
        self.faces = prepared(
            source, self.preprocessing, template, resize, aligned=aligned, preset=self.recognizer.template
        )

    def _with_faces(self, photographs: FaceDataset, table: Path, resume: bool) -> FaceDataset:
        """Find the faces of photographs; those without one are listed, here and on the page, and left out."""
        from .landmarks import in_words, with_faces

        source, failures = with_faces(photographs, table, resume, self._quiet)
        if failures:
            shown = ", ".join(list(failures)[:5]) + (", …" if len(failures) > 5 else "")
            text = f"{len(failures):,} of {len(photographs):,} images are left out: {in_words(failures)}."
            self._notes.append(text)
            typer.echo(f"{text} {shown} (all in {table})", err=True)
        return source

    def audit(self, work: Path, **settings: Any) -> Audit:
        """Return the audit, with its work in a folder; settings as for :func:`occfast.audit.audit`."""
        from ..audit import audit as run

        if not self._quiet:
            typer.echo(
                self.forecast(**{k: settings[k] for k in ("coverings", "limit", "curve", "map_images")}), err=True
            )
        return run(
            self.recognizer.embedding(),
            self.faces,
            self.preprocessing,
            checkpoint=work,
            model_name=Path(self.model).name,
            dataset_name=Path(self._faces).name,
            notes=self._notes,
            progress=not self._quiet,
            **settings,
        )

    def forecast(self, **settings: Any) -> str:
        """Say what an audit will compute, and how long that will take; settings as for ``occfast.audit.Work.of``."""
        import time

        import torch

        from ..audit import Work
        from ..progress import time_text
        from ..sweep.options import device_of
        from .forecast import seconds_each

        work = Work.of(self.faces, self.preprocessing, **settings)
        model, begin = self.recognizer.embedding(), time.perf_counter()
        images = self.preprocessing(torch.stack([self.faces[k].image for k in range(min(_READ, len(self.faces)))]))
        reading = (time.perf_counter() - begin) / len(images)
        each = seconds_each(model, images.to(device_of(model, None) or images.device))
        seconds = work.images * work.passes * (reading + each) + work.positions * each
        return (
            f"{work.images:,} images, {work.passes:,} times each, and {work.positions:,} positions of the map: about "
            f"{time_text(seconds)}, less what an earlier run has left"
        )


def coverings_of(cover: list[str] | None, seed: int) -> list[Covering] | None:
    """Return the coverings of --cover; None: the usual ones."""
    from ..audit import Covering

    return None if not cover else [Covering.named(name, seed) for name in cover]


def _unaligned(model: str, preset: str | None, *, recorded: bool) -> str:
    """Say what to do if nothing states how a network's faces are aligned, but maybe the rest of their preparation."""
    if preset is None and recorded:
        return (
            f"--template: {model} does not record how its faces are aligned; give --template, such as arcface-112, "
            "--resize for cropped faces, or --aligned for aligned ones"
        )
    if preset in (None, "auto"):
        return (
            f"--preset: {model} does not record how its faces are aligned; name a preset, or let auto try them; "
            "otherwise give --template, --resize for cropped faces, or --aligned for aligned ones"
        )
    return f"--preset: {preset} expects images of the face's box; give --resize if these are, or --template"


def _groups(path: Path) -> dict[str, str]:
    import csv
    import io

    from ..files import read_text

    rows = list(csv.DictReader(io.StringIO(read_text(path))))
    if not rows or not {"name", "group"} <= set(rows[0]):
        raise ValueError(f"--groups: expected a CSV file with the columns name and group, got {path}")
    return {row["name"]: row["group"] for row in rows if row["group"]}

"""Clean and covered in one report: any protocol under any occlusions, as one table of what covering costs."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..data import FaceDataset
from ..errors import DataError
from ..files import write_atomically
from ..models import Preprocessing
from ..occlude.base import Cover
from ..plots import png_data_uri
from ..progress import Report as Progress
from .embedding import Embeddings, Flip, described, embed, fingerprint
from .pairs import Verification
from .protocols import AnyProtocol, PairProtocol, Result
from .search import Identification

CLEAN = "clean"


@dataclass(frozen=True, eq=False)
class Row:
    """One protocol under one occlusion.

    Attributes:
        protocol, occlusion: their names; "clean" without one.
        covered: mean share of the probes' pixels that is covered.
        result: what the protocol gave.
        at_clean_threshold: accuracy with each fold's threshold chosen on the clean pairs, as a system that was set up
            before faces were covered; None without folds.
    """

    protocol: str
    occlusion: str
    covered: float
    result: Result
    at_clean_threshold: float | None = None

    @property
    def metrics(self) -> dict[str, float]:
        """Named figures in [0, 1], the main one first."""
        r = self.result
        if isinstance(r, Identification):
            found = {f"rank-{k}": rate for k, rate in r.ranks.items()}
            return found | {f"DIR@FAR={far:g}": entry.rate for far, entry in r.dir_at_far.items()}
        found = {} if r.accuracy is None else {"accuracy": r.accuracy}
        if self.at_clean_threshold is not None:
            found["accuracy, clean threshold"] = self.at_clean_threshold
        found |= {"AUC": r.auc, "EER": r.eer}
        return found | {f"TAR@FAR={far:g}": entry.tar for far, entry in r.tar_at_far.items()}

    def shown(self, name: str) -> str:
        """A figure in per cent with its spread or interval."""
        value, r = 100 * self.metrics[name], self.result
        if isinstance(r, Verification):
            if name == "accuracy" and r.accuracy_sem is not None and r.accuracy_std is not None:
                return f"{value:.2f} ± {100 * r.accuracy_std:.2f}"
            if name == "AUC":
                auc = r.people.get("auc", r.auc_interval)
                return f"{value:.2f} [{100 * auc.low:.2f}, {100 * auc.high:.2f}]"
            if name.startswith("TAR@FAR="):
                far = float(name.partition("=")[2])
                tar = r.people.get(f"tar@{far:g}", r.tar_at_far[far].interval)
                return f"{value:.2f} [{100 * tar.low:.1f}, {100 * tar.high:.1f}]"
        elif name.startswith("rank-"):
            interval = r.rank_intervals[int(name.partition("-")[2])]
            return f"{value:.2f} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"
        return f"{value:.2f}"

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "protocol": self.protocol,
            "occlusion": self.occlusion,
            "covered": self.covered,
            "metrics": self.metrics,
            **self.result.as_dict(),
        }


@dataclass(frozen=True, eq=False)
class Comparison:
    """Protocols, clean and covered: the result of :func:`compare` and of :func:`evaluate_scores`.

    Attributes:
        rows: of the protocols in their order, each clean first.
        settings: how the figures came about: preprocessing with size, color order and alignment, flip fusion,
            occlusions, the model's fingerprint, missing pairs.
        examples: the mean face, clean and under each occlusion, uint8 [C, H, W]; for the page.
    """

    rows: list[Row]
    settings: dict[str, Any]
    examples: dict[str, Tensor] = field(default_factory=dict)

    def __getitem__(self, key: tuple[str, str]) -> Row:
        """The row of (protocol, occlusion)."""
        for row in self.rows:
            if (row.protocol, row.occlusion) == key:
                return row
        raise KeyError(key)

    @property
    def protocols(self) -> list[str]:
        """Names, in order."""
        return list(dict.fromkeys(row.protocol for row in self.rows))

    def cost(self, row: Row) -> float | None:
        """By how much the main figure is below the clean one's; None for clean rows."""
        if row.occlusion == CLEAN:
            return None
        name = next(iter(row.metrics))
        return self[row.protocol, CLEAN].metrics[name] - row.metrics[name]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        rows = [{**row.as_dict(), "cost": self.cost(row)} for row in self.rows]
        return {"kind": "occfast.evaluate.Comparison", "rows": rows, "settings": self.settings}

    def table(self, protocol: str) -> tuple[list[str], list[list[str]]]:
        """Header and cells of one protocol's table, figures in per cent."""
        rows = [row for row in self.rows if row.protocol == protocol]
        names = list(rows[0].metrics)
        several = len(rows) > 1
        header = ["occlusion", "covered", *names, *(["cost"] if several else [])]
        cells = []
        for row in rows:
            cost = self.cost(row)
            end = [] if not several else [""] if cost is None else [f"{100 * cost:.2f}"]
            cells.append([row.occlusion, f"{100 * row.covered:.1f}", *(row.shown(name) for name in names), *end])
        return header, cells

    def to_markdown(self) -> str:
        """One table a protocol."""
        lines: list[str] = []
        for protocol in self.protocols:
            header, cells = self.table(protocol)
            lines += [f"### {protocol}", "", "| " + " | ".join(header) + " |"]
            lines.append("| --- |" + " ---: |" * (len(header) - 1))
            lines += ["| " + " | ".join(row) + " |" for row in cells] + ["", self.note(protocol), ""]
        return "\n".join(lines)

    def note(self, protocol: str) -> str:
        """What the figures of a protocol's table are."""
        result = self[protocol, next(row.occlusion for row in self.rows if row.protocol == protocol)].result
        missing = self.settings.get("missing", {}).get(protocol, 0)
        gone = f" {missing} listed pairs name images that are not there." if missing else ""
        level = f"{100 * result.confidence:g} % intervals in brackets"
        if isinstance(result, Identification):
            impostors = f" and {result.n_unknown} unknown" if result.n_unknown else ""
            return f"Per cent; {level}; {result.n_known} known{impostors} probes, {result.n_people} people.{gone}"
        level += " from a bootstrap over people" if result.people else ""
        folds = f"mean ± standard deviation over {len(result.folds)} folds; " if len(result.folds) > 1 else ""
        return f"Per cent; {folds}{level}; {result.n_same} + {result.n_different} pairs.{gone}"

    def roc_csv(self, points: int = 2000) -> str:
        """``protocol,occlusion,far,tar,threshold``: about so many corners of each curve."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(("protocol", "occlusion", "far", "tar", "threshold"))
        for row in self.rows:
            if isinstance(row.result, Verification):
                for corner in zip(*row.result.roc.points(points), strict=True):
                    writer.writerow((row.protocol, row.occlusion, *(repr(float(v)) for v in corner)))
        return text.getvalue()

    def figure(self, protocol: str) -> Any:
        """Matplotlib figure: ROC curves over log FAR, or match rates over ranks; one line for each occlusion."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(5.4, 4.2), layout="constrained")
        ax = figure.subplots()
        for row in self.rows:
            if row.protocol != protocol:
                continue
            if isinstance(row.result, Verification):
                far, tar, _ = row.result.roc.points(4000)
                ax.step(np.r_[far, 1.0], np.r_[tar, 1.0], where="post", label=row.occlusion, linewidth=1.4)
            else:
                ranks = min(20, row.result.n_people)
                ax.plot(np.arange(1, ranks + 1), row.result.cmc(ranks), ".-", label=row.occlusion)
        result = self[protocol, next(row.occlusion for row in self.rows if row.protocol == protocol)].result
        if isinstance(result, Verification):
            ax.set_xscale("log")
            ax.set_xlim(max(0.5 / result.n_different, 1e-6), 1)
            ax.set(xlabel="false acceptance rate", ylabel="true acceptance rate")
        else:
            ax.set(xlabel="rank", ylabel="share of known probes found")
        ax.set_ylim(0, 1.01)
        ax.grid(alpha=0.3)
        ax.set_title(protocol, fontsize=10)
        ax.legend(fontsize=8)
        return figure

    def to_html(self) -> str:
        """One self-contained page."""
        from importlib.resources import files

        import jinja2

        from .._version import __version__

        template = files("occfast.evaluate").joinpath("report.html").read_text(encoding="utf-8")
        environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
        parts = []
        for protocol in self.protocols:
            header, rows = self.table(protocol)
            parts.append(
                {
                    "name": protocol,
                    "header": header,
                    "rows": rows,
                    "note": self.note(protocol),
                    "picture": png_data_uri(self.figure(protocol)),
                }
            )
        return environment.from_string(template).render(
            title="Clean and covered" if len(self.rows) > len(self.protocols) else "Evaluation",
            parts=parts,
            examples=[{"uri": _picture(image), "text": name} for name, image in self.examples.items()],
            settings=[(name, json.dumps(value, ensure_ascii=False)) for name, value in self.settings.items()],
            version=f"occfast {__version__}, PyTorch {torch.__version__}",
        )

    def write(self, folder: str | os.PathLike[str]) -> Path:
        """Write ``report.json``, ``report.md``, ``report.html``, ``roc.csv`` and one picture a protocol.

        Returns:
            ``report.html``.
        """
        folder = Path(folder)
        write_atomically(folder / "report.json", (json.dumps(self.as_dict(), indent=1) + "\n").encode())
        write_atomically(folder / "report.md", self.to_markdown().encode())
        if any(isinstance(row.result, Verification) for row in self.rows):
            write_atomically(folder / "roc.csv", self.roc_csv().encode())
        for number, protocol in enumerate(self.protocols):
            buffer = io.BytesIO()
            self.figure(protocol).savefig(buffer, format="png", dpi=120)
            write_atomically(folder / f"curve-{number + 1}.png", buffer.getvalue())
        return write_atomically(folder / "report.html", self.to_html().encode())


def evaluate_scores(scores: Any, same: Any, folds: Any = 10, *, name: str = "scores", **options: Any) -> Comparison:
    """A report of scores that some other program computed; ``options`` are those of ``verification``."""
    from .pairs import verification

    return Comparison([Row(name, CLEAN, 0.0, verification(scores, same, folds, **options))], {"source": name})


def compare(
    protocols: AnyProtocol | Sequence[AnyProtocol],
    model: Callable[[Tensor], Tensor],
    dataset: FaceDataset,
    preprocessing: Preprocessing,
    occlusions: Mapping[str, Cover] | None = None,
    *,
    cover: Literal["probe", "both"] = "probe",
    flip: Flip = "sum",
    batch_size: int = 64,
    device: str | torch.device | None = None,
    workers: int = 0,
    cache: str | os.PathLike[str] | None = None,
    resamples: int = 0,
    progress: bool | Progress = True,
) -> Comparison:
    """Run protocols on clean faces and under each occlusion.

    Args:
        protocols: of one data set.
        model, dataset, preprocessing, flip, batch_size, device, workers, progress: as in :func:`embed`.
        occlusions: by the names of the report's rows.
        cover: what is covered: the "probe" (second image of a pair; the reference or gallery stays clean) or "both".
        cache: folder for features: a run that was stopped goes on there.  They are used again only where model,
            preprocessing, flip fusion, occlusion and images are the same.
        resamples: of a bootstrap over people for the intervals of pairs; 0: intervals that take pairs as independent.

    Raises:
        ValueError: an occlusion is named "clean", two protocols share a name, and what :func:`embed` raises.
    """
    several = [protocols] if not isinstance(protocols, Sequence) else list(protocols)
    names = [p.name for p in several]
    if not several or len(set(names)) < len(names):
        raise ValueError(f"protocols: expected at least one and different names, got {names}")
    covers: dict[str, Cover | None] = {CLEAN: None, **(occlusions or {})}
    if occlusions and CLEAN in occlusions:
        raise ValueError(f"occlusions: the name {CLEAN!r} is that of faces without any")
    if cover not in ("probe", "both"):
        raise ValueError(f"cover: expected 'probe' or 'both', got {cover!r}")
    references = torch.cat([p.references for p in several]).unique()
    probes = torch.cat([p.probes for p in several]).unique()
    everything = torch.cat([references, probes]).unique()
    folder = None if cache is None else Path(cache)

    def features(name: str, occlusion: Cover | None, indices: Tensor) -> Embeddings:
        path = None
        if folder is not None:
            key = _key(fingerprint(model), preprocessing.to_json(), flip, occlusion, dataset, indices)
            path = folder / f"features-{key}.npz"
            if path.is_file():
                return Embeddings.load(path)
        found = embed(
            model,
            dataset,
            preprocessing,
            indices=indices,
            occlusion=occlusion,
            flip=flip,
            batch_size=batch_size,
            device=device,
            workers=workers,
            progress=progress,
            title=name,
        )
        if path is not None:
            found.save(path)
        return found

    rows: dict[tuple[str, str], Row] = {}
    clean: Tensor | None = None
    for name, occlusion in covers.items():
        indices = everything if occlusion is None or cover == "both" else probes
        found = features(name, occlusion, indices)
        table = torch.full((len(dataset), found.features.shape[1]), torch.nan)
        table[indices] = found.features
        share = torch.zeros(len(dataset))
        share[indices] = found.covered
        clean = table if clean is None else clean
        reference = clean if cover == "probe" else table
        for protocol in several:
            result = _evaluate(protocol, clean, reference, table, resamples)
            before = rows.get((protocol.name, CLEAN))
            at_clean = None
            if isinstance(protocol, PairProtocol) and before is not None and protocol.train is None:
                at_clean = _at_clean_threshold(protocol, before.result, reference, table)
            mean = float(share[protocol.probes].mean())
            rows[protocol.name, name] = Row(protocol.name, name, mean, result, at_clean)
    ordered = [rows[p.name, name] for p in several for name in covers]
    # A table has one set of columns: on clean faces the clean threshold is the threshold.
    ordered = [
        Row(**{**vars(row), "at_clean_threshold": row.result.accuracy})
        if row.occlusion == CLEAN and len(covers) > 1 and _has_folds(row.result)
        else row
        for row in ordered
        if isinstance(row.result, Verification | Identification)
    ]
    settings = {
        "preprocessing": json.loads(preprocessing.to_json()),
        "model": fingerprint(model),
        "flip": flip,
        "cover": cover,
        "resamples": resamples,
        "occlusions": {name: described(c) for name, c in covers.items() if c is not None},
        "images": len(everything),
        "missing": {p.name: p.missing for p in several if p.missing},
    }
    return Comparison(ordered, settings, _examples(dataset, probes, covers))


def _evaluate(protocol: AnyProtocol, clean: Tensor, references: Tensor, probes: Tensor, resamples: int) -> Result:
    if isinstance(protocol, PairProtocol) and protocol.train is not None:
        # The threshold is chosen on clean pairs whatever covers the test.
        merged = references.clone()
        rows = protocol.train.index.flatten().unique()
        merged[rows] = clean[rows]
        return protocol.evaluate(merged, probes, resamples)
    return protocol.evaluate(references, probes, resamples)


def _has_folds(result: Result) -> bool:
    return isinstance(result, Verification) and len(result.folds) > 1


def _at_clean_threshold(protocol: PairProtocol, clean: Result, references: Tensor, probes: Tensor) -> float | None:
    from .pairs import fold_ids
    from .protocols import _used
    from .scores import pair_scores

    if not isinstance(clean, Verification) or len(clean.folds) < 2:
        return None
    scores = pair_scores(*_used(references, probes, protocol.index)).double().numpy()
    same = protocol.same.numpy()
    ids = fold_ids(protocol.folds, same)
    threshold = clean.thresholds[np.searchsorted(clean.folds, ids)]
    right = (scores >= threshold) == same
    return float(np.mean([right[ids == fold].mean() for fold in clean.folds]))


def _key(
    weights: str | None, preprocessing: str, flip: str, cover: Cover | None, dataset: FaceDataset, indices: Tensor
) -> str:
    """What features depend on; of the images their names, landmarks, and the pixels of a few."""
    if weights is None:
        raise ValueError("cache: expected a model with weights to tell it by; leave cache out for other callables")
    about = {
        "weights": weights,
        "preprocessing": preprocessing,
        "flip": flip,
        "occlusion": None if cover is None else described(cover),
        "alignment": None if dataset.alignment is None else dataset.alignment.as_dict(),
        "indices": indices.tolist(),
        "names": [dataset.names[k] for k in indices.tolist()],
    }
    digest = hashlib.sha256(json.dumps(about, default=repr, sort_keys=True).encode())
    if dataset.landmarks is not None:
        digest.update(dataset.landmarks.double().contiguous().numpy().tobytes())
    for k in indices[torch.linspace(0, len(indices) - 1, 3).long()].tolist():
        digest.update(dataset[k].image.contiguous().numpy().tobytes())
    return digest.hexdigest()[:24]


def _examples(
    dataset: FaceDataset, probes: Tensor, covers: Mapping[str, Cover | None], count: int = 32
) -> dict[str, Tensor]:
    """The mean of some faces at their mean landmarks: shows what covers without showing anybody."""
    chosen = [dataset[k] for k in probes[torch.linspace(0, len(probes) - 1, min(count, len(probes))).long()].tolist()]
    mean = torch.stack([face.image for face in chosen]).double().mean(0).round().to(torch.uint8)
    points = [face.landmarks for face in chosen if face.landmarks is not None]
    landmarks = torch.stack(points).mean(0)[None] if len(points) == len(chosen) else None
    found = {}
    for name, cover in covers.items():
        if cover is None:
            found[name] = mean
        elif landmarks is not None or not cover.needs_landmarks:
            found[name] = cover(mean[None], landmarks, torch.zeros(1, dtype=torch.int64)).images[0]
    return found


def _picture(image: Tensor) -> str:
    import base64

    from PIL import Image

    array = image.permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(array[..., 0] if array.shape[2] == 1 else array).save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def read_scores(path: str | os.PathLike[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Scores, whether each pair is of one person, and folds or None, of a CSV file with a header.

    Columns ``score``, ``same`` (0 or 1, false or true) and perhaps ``fold``, in any order, beside any others; divided
    by commas, semicolons or tabs.

    Raises:
        DataError: with the line, where it is something else.
    """
    from ..data.folder import read_lines

    lines = read_lines(Path(path))
    divider = next((d for d in "\t;," if lines and d in lines[0][1]), ",")
    header = [cell.strip().lower() for cell in (lines[0][1].split(divider) if lines else [])]
    if "score" not in header or "same" not in header or len(set(header)) < len(header):
        got = ", ".join(header)
        raise DataError(f"{path}, line 1: expected a header with score, same and perhaps fold, got {got!r:.80}")
    truth = {"0": False, "1": True, "false": False, "true": True}
    scores, same, folds = [], [], []
    for number, line in lines[1:]:
        try:
            cells = dict(zip(header, (cell.strip() for cell in _cells(line, divider)), strict=True))
            scores.append(float(cells["score"]))
            same.append(truth[cells["same"].lower()])
            folds.append(int(cells["fold"]) if "fold" in cells else 0)
        except (ValueError, KeyError) as error:
            raise DataError(f"{path}, line {number}: expected {', '.join(header)}, got {line!r:.80}") from error
    if not scores:
        raise DataError(f"{path}: expected scores after the header, found none")
    return np.array(scores), np.array(same), np.array(folds) if "fold" in header else None


def _cells(line: str, divider: str) -> list[str]:
    try:
        return next(csv.reader([line], delimiter=divider), [])
    except csv.Error as error:
        raise ValueError(str(error)) from error

"""Results of protocols on clean and occluded faces, as tables, JSON, CSV, Markdown and an HTML page."""

from __future__ import annotations

import csv
import html
import io
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..files import write_atomically
from .pairs import Verification
from .protocols import Result
from .resampling import RESAMPLES, Difference, accuracy_difference, auc_difference, probe_difference
from .search import Identification

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Name of the rows without an occlusion.
CLEAN = "clean"
#: Follows a figure at a FAR that the number of pairs or probes can't resolve.
UNSUPPORTED = "*"


@dataclass(frozen=True, eq=False)
class Row:
    """Result of one network with one protocol under one occlusion.

    Attributes:
        protocol: Name of the protocol.
        occlusion: Name of the occlusion, or "clean".
        covered: Mean share of the pixels of the probes that are occluded.
        result: Result of the protocol.
        at_clean_threshold: Accuracy with the thresholds of the folds chosen on the clean pairs, as in a system that was
            set up before faces were occluded; None without folds.
        model: Name of the network; empty where there is only one.
    """

    protocol: str
    occlusion: str
    covered: float
    result: Result
    at_clean_threshold: float | None = None
    model: str = ""

    @property
    def metrics(self) -> dict[str, float]:
        """Figures by name, each in [0, 1]; the main one is first."""
        r = self.result
        if isinstance(r, Identification):
            found = {f"rank-{k}": rate for k, rate in r.ranks.items()}
            return found | {f"DIR@FAR={far:g}": entry.rate for far, entry in r.dir_at_far.items()}
        found = {} if r.accuracy is None else {"accuracy": r.accuracy}
        if self.at_clean_threshold is not None:
            found["accuracy, clean threshold"] = self.at_clean_threshold
        found |= {"AUC": r.auc, "EER": r.eer}
        return found | {f"TAR@FAR={far:g}": entry.tar for far, entry in r.tar_at_far.items()}

    def supported(self, name: str) -> bool:
        """Return whether there are enough pairs or probes for the FAR of a figure."""
        if "@FAR=" not in name:
            return True
        far, r = float(name.partition("=")[2]), self.result
        return r.dir_at_far[far].supported if isinstance(r, Identification) else r.tar_at_far[far].supported

    def shown(self, name: str) -> str:
        """Format a figure in percent, with its standard deviation or confidence interval."""
        value, r = 100 * self.metrics[name], self.result
        mark = "" if self.supported(name) else f" {UNSUPPORTED}"
        if isinstance(r, Verification):
            if name == "accuracy" and r.accuracy_sem is not None and r.accuracy_std is not None:
                return f"{value:.2f} ± {100 * r.accuracy_std:.2f}"
            if name == "AUC":
                auc = r.people.get("auc", r.auc_interval)
                return f"{value:.2f} [{100 * auc.low:.2f}, {100 * auc.high:.2f}]"
            if name.startswith("TAR@FAR="):
                far = float(name.partition("=")[2])
                tar = r.people.get(f"tar@{far:g}", r.tar_at_far[far].interval)
                return f"{value:.2f} [{100 * tar.low:.1f}, {100 * tar.high:.1f}]{mark}"
        elif name.startswith("rank-"):
            interval = r.rank_intervals[int(name.partition("-")[2])]
            return f"{value:.2f} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"
        elif name.startswith("DIR@FAR="):
            interval = r.dir_at_far[float(name.partition("=")[2])].interval
            return f"{value:.2f} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]{mark}"
        return f"{value:.2f}"

    def as_dict(self) -> dict[str, Any]:
        """Return the row for JSON."""
        return {
            "protocol": self.protocol,
            "occlusion": self.occlusion,
            **({"model": self.model} if self.model else {}),
            "covered": self.covered,
            "metrics": self.metrics,
            **self.result.as_dict(),
        }


class PairedRow(NamedTuple):
    """Difference between two networks with one protocol under one occlusion.

    Attributes:
        protocol: Name of the protocol.
        occlusion: Name of the occlusion, or "clean".
        first: Name of the first network.
        second: Name of the second network.
        difference: Second network minus first network.
    """

    protocol: str
    occlusion: str
    first: str
    second: str
    difference: Difference

    def as_dict(self) -> dict[str, Any]:
        """Return the row for JSON."""
        d = self.difference
        return {**self._asdict(), "difference": {**d._asdict(), "interval": list(d.interval)}}


@dataclass(frozen=True, eq=False)
class Comparison:
    """Results of protocols on clean and occluded faces; returned by :func:`~occfast.evaluate.compare`.

    Attributes:
        rows: Rows in the order of the protocols; of each protocol, "clean" is first.
        settings: How the results were obtained: preprocessing, flip fusion, occlusions, network, data, date.
        examples: Mean face, clean and under each occlusion, uint8 [C, H, W], for the page.
        notes: Remarks by protocol.
        differences: Paired differences between the first network and each other one.
    """

    rows: list[Row]
    settings: dict[str, Any]
    examples: dict[str, Tensor] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    differences: list[PairedRow] = field(default_factory=list)

    @classmethod
    def join(cls, comparisons: Mapping[str, Comparison], *, resamples: int = RESAMPLES) -> Comparison:
        """Join the results of several networks, with paired differences between the first and each other one.

        Args:
            comparisons: Results by name of the network, of the same protocols and occlusions on the same images.
            resamples: Number of resamples of people for the paired tests, at least 20. With 0, or where the people are
                unknown, pairs and probes are treated as independent.

        Raises:
            ValueError: There is no comparison, or protocols, occlusions, pairs or probes differ.
        """
        if not comparisons:
            raise ValueError("comparisons: expected at least one, got none")
        names = list(comparisons)
        first = comparisons[names[0]]
        keys = [(row.protocol, row.occlusion) for row in first.rows]
        for name, other in comparisons.items():
            if [(row.protocol, row.occlusion) for row in other.rows] != keys:
                raise ValueError(f"comparisons: expected the same protocols and occlusions, those of {name!r} differ")
        rows = [replace(comparisons[name][key], model=name) for key in keys for name in names]
        differences = [
            PairedRow(*key, names[0], name, _difference(first[key].result, comparisons[name][key].result, resamples))
            for key in keys
            for name in names[1:]
        ]
        shared = {
            key: value
            for key, value in first.settings.items()
            if all(other.settings.get(key) == value for other in comparisons.values())
        }
        own = {
            name: {key: value for key, value in other.settings.items() if key not in shared and key != "model_name"}
            for name, other in comparisons.items()
        }
        settings = {"models": own, **shared}
        return cls(rows, settings, first.examples, first.notes, differences)

    def __getitem__(self, key: tuple[str, str] | tuple[str, str, str]) -> Row:
        """Return the row of (protocol, occlusion), or of (protocol, occlusion, network)."""
        for row in self.rows:
            if (row.protocol, row.occlusion, row.model)[: len(key)] == tuple(key):
                return row
        raise KeyError(key)

    @property
    def protocols(self) -> list[str]:
        """Names of the protocols, in order."""
        return list(dict.fromkeys(row.protocol for row in self.rows))

    @property
    def models(self) -> list[str]:
        """Names of the networks, in order; [""] where there is only one."""
        return list(dict.fromkeys(row.model for row in self.rows))

    @property
    def title(self) -> str:
        """Title of the report."""
        models = self.models if len(self.models) > 1 else [str(self.settings.get("model_name") or "")]
        occluded = any(row.occlusion != CLEAN for row in self.rows)
        what = "Accuracy under occlusion" if occluded else "Face recognition accuracy"
        about = ", ".join(filter(None, models))
        data = self.settings.get("data")
        return what + (f": {about}" if about else "") + (f" on {data}" if data else "")

    def cost(self, row: Row) -> float | None:
        """Return the main figure of the clean row minus that of ``row``; None for clean rows."""
        if row.occlusion == CLEAN:
            return None
        name = next(iter(row.metrics))
        return self[row.protocol, CLEAN, row.model].metrics[name] - row.metrics[name]

    def as_dict(self) -> dict[str, Any]:
        """Return everything but curves and pictures for JSON."""
        rows = [{**row.as_dict(), "cost": self.cost(row)} for row in self.rows]
        found = {"kind": "occfast.evaluate.Comparison", "rows": rows, "settings": self.settings, "notes": self.notes}
        return found | ({"differences": [row.as_dict() for row in self.differences]} if self.differences else {})

    def table(self, protocol: str) -> tuple[list[str], list[list[str]]]:
        """Return the header and the cells of the table of a protocol, with figures in percent."""
        rows = [row for row in self.rows if row.protocol == protocol]
        main, *others = rows[0].metrics
        named, occluded = len(self.models) > 1, any(row.occlusion != CLEAN for row in rows)
        header = ["occlusion", *(["model"] if named else []), main, *(["cost"] if occluded else []), *others, "covered"]
        cells = []
        for row in rows:
            cost = self.cost(row)
            cells.append(
                [
                    row.occlusion,
                    *([row.model] if named else []),
                    row.shown(main),
                    *([] if not occluded else [""] if cost is None else [f"{100 * cost:.2f}"]),
                    *(row.shown(name) for name in others),
                    f"{100 * row.covered:.1f}",
                ]
            )
        return header, cells

    def difference_table(self, protocol: str) -> tuple[list[str], list[list[str]]]:
        """Return the header and the cells of the table of paired differences, in percentage points."""
        rows = [row for row in self.differences if row.protocol == protocol]
        cells = []
        for row in rows:
            d = row.difference
            interval = f"[{100 * d.interval.low:+.2f}, {100 * d.interval.high:+.2f}]"
            change = f"{100 * d.value:+.2f} {interval}"
            cells.append([row.occlusion, f"{row.second} − {row.first}", d.figure, change, f"{d.p_value:.3g}", d.method])
        return ["occlusion", "models", "figure", "difference", "p", "test"], cells

    def to_markdown(self) -> str:
        """Return the tables as Markdown. Names can't add HTML or cells."""
        lines = [f"# {_markdown(self.title)}", ""]
        if date := self.settings.get("date"):
            lines += [f"{date}", ""]
        for protocol in self.protocols:
            lines += [f"## {_markdown(protocol)}", "", *_markdown_table(*self.table(protocol))]
            lines += ["", _markdown(self.note(protocol)), ""]
            if self.differences:
                lines += [*_markdown_table(*self.difference_table(protocol)), ""]
        return "\n".join(lines)

    def note(self, protocol: str) -> str:
        """Return a description of the figures in the table of a protocol."""
        rows = [row for row in self.rows if row.protocol == protocol]
        result = rows[0].result
        parts = [f"In percent; {100 * result.confidence:g} % confidence intervals in brackets"]
        if isinstance(result, Identification):
            known = f"{result.n_known} known" + (f" and {result.n_unknown} unknown" if result.n_unknown else "")
            by = "from a bootstrap over people" if result.resamples else "with probes treated as independent"
            parts[0] += f", {by}"
            parts.append(f"{known} probes, {result.n_people} people in the gallery")
        else:
            by = "from a bootstrap over people" if result.people else "with pairs treated as independent"
            parts[0] += f", {by}"
            if len(result.folds) > 1:
                parts.append(f"accuracy: mean ± standard deviation over {len(result.folds)} folds")
            parts.append(f"{result.n_same} pairs of the same person, {result.n_different} of different people")
        text = "; ".join(parts) + "."
        if any(row.occlusion != CLEAN for row in rows):
            text += f" Cost: {next(iter(rows[0].metrics))} of clean faces minus that of occluded faces."
        if isinstance(result, Verification) and result.accuracy is None:
            text += " No accuracy, since the pairs have no folds."
        if not all(row.supported(name) for row in rows for name in row.metrics):
            what = "probes of unknown people" if isinstance(result, Identification) else "pairs of different people"
            text += f" {UNSUPPORTED} Fewer than 1 / FAR {what}: the value is that at a FAR of 0."
        missing = self.settings.get("missing", {}).get(protocol, 0)
        if missing:
            text += f" {missing} listed pairs name missing images."
        return f"{text} {self.notes.get(protocol, '')}".rstrip()

    def roc_csv(self, points: int = 2000) -> str:
        """Return the ROC curves as CSV with the columns ``protocol,occlusion[,model],far,tar,threshold``.

        There is a column ``model`` if there are several networks.

        Args:
            points: Approximate number of points of each curve.
        """
        named = len(self.models) > 1
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(("protocol", "occlusion", *(["model"] if named else []), "far", "tar", "threshold"))
        for row in self.rows:
            if isinstance(row.result, Verification):
                names = [_csv(row.protocol), _csv(row.occlusion), *([_csv(row.model)] if named else [])]
                for point in zip(*row.result.roc.points(points), strict=True):
                    writer.writerow((*names, *(repr(float(v)) for v in point)))
        return text.getvalue()

    def figure(self, protocol: str) -> Figure:
        """Draw the ROC curves, or the cumulative match characteristics, of a protocol; returns a Matplotlib figure."""
        from .page import figure

        return figure(self, protocol)

    def to_html(self) -> str:
        """Return a self-contained page."""
        from .page import page

        return page(self)

    def write(self, folder: str | os.PathLike[str]) -> Path:
        """Write ``report.json``, ``report.md``, ``report.html``, ``roc.csv`` and one picture per protocol.

        An older report in the folder is replaced.

        Returns:
            Path of ``report.html``.
        """
        folder = Path(folder)
        write_atomically(folder / "report.json", (json.dumps(self.as_dict(), indent=1) + "\n").encode())
        write_atomically(folder / "report.md", self.to_markdown().encode())
        if any(isinstance(row.result, Verification) for row in self.rows):
            write_atomically(folder / "roc.csv", self.roc_csv().encode())
        else:
            (folder / "roc.csv").unlink(missing_ok=True)
        pictures = [folder / f"curve-{number + 1}.png" for number in range(len(self.protocols))]
        for path in set(folder.glob("curve-*.png")) - set(pictures):
            path.unlink()
        for path, protocol in zip(pictures, self.protocols, strict=True):
            buffer = io.BytesIO()
            self.figure(protocol).savefig(buffer, format="png", dpi=120)
            write_atomically(path, buffer.getvalue())
        return write_atomically(folder / "report.html", self.to_html().encode())


def _difference(first: Result, second: Result, resamples: int) -> Difference:
    """Compare the main figure of two results on the same pairs or probes."""
    if isinstance(first, Identification) and isinstance(second, Identification):
        known = first.rank > 0
        if not _equal(first.persons, second.persons) or not _equal(known, second.rank > 0):
            raise ValueError("comparisons: expected the same probes")
        hits = [result.rank[known] == 1 for result in (first, second)]
        return probe_difference(
            hits[0], hits[1], first.persons[known], confidence=first.confidence, resamples=resamples
        )
    if not isinstance(first, Verification) or not isinstance(second, Verification):
        raise ValueError("comparisons: expected the same kind of protocol")
    if not _equal(first.same, second.same) or not _equal(first.fold_of, second.fold_of):
        raise ValueError("comparisons: expected the same pairs and folds")
    if first.correct is not None and second.correct is not None:
        return accuracy_difference(
            first.correct,
            second.correct,
            first.fold_of,
            first.persons,
            confidence=first.confidence,
            resamples=resamples,
        )
    return auc_difference(
        first.scores, second.scores, first.same, first.persons, confidence=first.confidence, resamples=resamples
    )


def _equal(a: NDArray[Any] | None, b: NDArray[Any] | None) -> bool:
    return a is b if a is None or b is None else np.array_equal(a, b)


def _csv(name: str) -> str:
    # Spreadsheets run cells that begin so as formulas.
    return f"'{name}" if name.startswith(("=", "+", "-", "@", "\t", "\r")) else name


def _markdown(text: str) -> str:
    plain = html.escape(" ".join(text.split()), quote=False)
    for special in ("\\", "|", "`", "*", "_", "[", "]"):
        plain = plain.replace(special, f"\\{special}")
    return plain


def _markdown_table(header: list[str], cells: list[list[str]]) -> list[str]:
    lines = ["| " + " | ".join(map(_markdown, header)) + " |", "| --- |" + " ---: |" * (len(header) - 1)]
    return lines + ["| " + " | ".join(map(_markdown, row)) + " |" for row in cells]

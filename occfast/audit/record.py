"""What an audit leaves for later comparisons, in memory or as ``audit.json``."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import DataError
from ..files import read_json
from ..models import Preprocessing
from ..progress import one_line
from .figures import FORMAT, UNCOVERED, Figure, Resampled, from_json

#: Settings that a comparison needs, with their types.
_SETTINGS: dict[str, tuple[type, ...]] = {
    "faces": (str,),
    "images": (int,),
    "people": (int,),
    "people with genuine pairs": (int,),
    "covered": (str,),
    "resamples": (int,),
    "seed": (int,),
    "preprocessing": (dict,),
    "pixels": (str, type(None)),
    "model_name": (str,),
    "data": (str,),
}


@dataclass(frozen=True, eq=False)
class AuditRecord:
    """Figures of an audit with their resamples, and the settings that make two audits comparable.

    Attributes:
        source: The audit in messages, such as its file.
        name: Name of the recognizer.
        fmr: FMR that sets the main threshold.
        coverings: Settings of each covering by name.
        settings: Settings of the audit.
        figures: Its figures.
    """

    source: str
    name: str
    fmr: float
    coverings: dict[str, Any]
    settings: dict[str, Any] = field(repr=False)
    figures: Mapping[Figure, Resampled] = field(repr=False)

    @classmethod
    def of(cls, about: Mapping[str, Any], figures: Mapping[Figure, Resampled], source: str) -> AuditRecord:
        """Return the record of an audit from the content of its JSON file."""
        settings = about["settings"]
        name = one_line(settings["model_name"]) or source
        coverings = {c["name"]: c["about"] for c in about["conditions"] if c["name"] != UNCOVERED}
        return cls(source, name, about["fmr"], coverings, settings, figures)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> AuditRecord:
        """Read the ``audit.json`` of an audit.

        Raises:
            FileNotFoundError: There is no such file.
            DataError: It is something else, of another version or damaged.
        """
        content = read_json(path)
        if content.get("kind") != "occfast.audit":
            raise DataError(f"{path}: expected an audit.json of occfast audit")
        if content.get("format") != FORMAT:
            found = content.get("format", 1)
            raise DataError(
                f"{path}: written in format {found!r} by another version of occfast; this version reads format "
                f"{FORMAT}: repeat the audit"
            )
        try:
            settings = content["settings"]
            for name, types in _SETTINGS.items():
                if not isinstance(settings[name], types) or isinstance(settings[name], bool):
                    raise ValueError(f"{name}: {settings[name]!r:.80}")
            if not 100 <= settings["resamples"] <= 10**6:
                raise ValueError(f"{settings['resamples']} resamples")
            if not 2 <= settings["people with genuine pairs"] <= settings["people"] <= settings["images"]:
                raise ValueError(f"{settings['people']} people")
            if isinstance(content["fmr"], bool) or not 0 < content["fmr"] < 1:
                raise ValueError(f"FMR {content['fmr']!r}")
            for condition in content["conditions"]:
                if not isinstance(condition["name"], str) or not isinstance(condition["about"], dict):
                    raise ValueError(f"condition: {condition!r:.80}")
            settings["preprocessing"] = json.loads(
                Preprocessing.from_json(json.dumps(settings["preprocessing"])).to_json()
            )
            return cls.of(content, from_json(content["resamples"], settings["resamples"]), str(path))
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path}: damaged audit ({error})") from error

    @property
    def people(self) -> int:
        """Number of people with genuine pairs."""
        found: int = self.settings["people with genuine pairs"]
        return found

    def same_geometry(self, other: AuditRecord) -> bool:
        """Return whether size, colors and alignment of the faces agree with those of another audit."""
        return _geometry(self.settings) == _geometry(other.settings)

    def differing(self, other: AuditRecord) -> dict[str, tuple[Any, Any]]:
        """Return the parts of preprocessing that differ from another audit's, with both values."""
        mine, theirs = (
            {**s["preprocessing"], "alignment": s.get("alignment"), "flip": s.get("flip")}
            for s in (self.settings, other.settings)
        )
        return {
            name: (mine.get(name), theirs.get(name))
            for name in sorted({*mine, *theirs})
            if json.dumps(mine.get(name)) != json.dumps(theirs.get(name))
        }

    def require(self, other: AuditRecord, name: str) -> None:
        """Raise ValueError, with the argument's name, unless another audit is of the same faces and protocol."""
        mine, theirs = self.settings, other.settings
        alike = self.same_geometry(other)
        same_pixels = None in (mine["pixels"], theirs["pixels"]) or mine["pixels"] == theirs["pixels"]
        if mine["faces"] != theirs["faces"] or (alike and not same_pixels):
            raise ValueError(
                f"{name}: expected an audit of the same images of the same people, got {_faces(theirs)} in "
                f"{other.source}, {_faces(mine)} in {self.source}"
            )
        rows: list[tuple[str, Any, Any]] = [("--fmr", self.fmr, other.fmr)]
        rows += [("covered", mine["covered"], theirs["covered"])]
        rows += [("coverings", _listed(self.coverings), _listed(other.coverings))]
        rows += [("figures", _listed(map(str, self.figures)), _listed(map(str, other.figures)))]
        rows += [
            ("number of resamples", mine["resamples"], theirs["resamples"]),
            ("seed", mine["seed"], theirs["seed"]),
        ]
        if alike:
            rows += [(f"settings of {c}", self.coverings[c], other.coverings.get(c)) for c in self.coverings]
        for what, here, there in rows:
            if here != there:
                raise ValueError(
                    f"{name}: expected an audit by the same protocol, got {what} {there} in {other.source}, {here} in "
                    f"{self.source}"
                )


def _geometry(settings: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what decides how the faces look that are covered."""
    how = settings["preprocessing"]
    return tuple(how["size"]), how["color"] == "gray", str(settings.get("alignment"))


def _faces(settings: Mapping[str, Any]) -> str:
    data = settings.get("data")
    return f"{data + ', ' if data else ''}{settings['images']:,} images of {settings['people']:,} people"


def _listed(names: Any) -> str:
    return "; ".join(sorted(names)) or "none"

"""Recipes: settings of a training run, read from YAML by OmegaConf.

A file states what differs from the defaults; ``extends`` names a recipe to start from (a packaged one or a file beside
it), and overrides ``key.key=value`` come last. Unknown keys are refused.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_origin, get_type_hints

from ..models.preprocessing import Preprocessing
from ..models.tensor_files import read_about
from ..packages import require
from .settings import (
    BatchPart,
    ClassifierPart,
    DataPart,
    LogPart,
    LossPart,
    LowResolutionPart,
    NetworkPart,
    OccluderPart,
    OptimizerPart,
    Recipe,
    ValidationPart,
    preparation,
    preset_values,
)

if TYPE_CHECKING:
    from omegaconf import DictConfig

RECIPES = Path(__file__).with_name("recipes")
#: Keys that may name ``module:function``, whose code runs.
_CODE = ("data.name", "network.name", "validation.metric")
#: Keys of ``data`` that say how the network's images are prepared.
_IMAGES = ("template", "size", "color", "mean", "std")
#: Kinds of values in words.
_WORDS: dict[Any, str] = {int: "an int", float: "a number", bool: "true or false", str: "a text"}
_PLURALS: dict[Any, str] = {int: "ints", float: "numbers", str: "texts"}

__all__ = [
    "BatchPart",
    "ClassifierPart",
    "DataPart",
    "LogPart",
    "LossPart",
    "LowResolutionPart",
    "NetworkPart",
    "OccluderPart",
    "OptimizerPart",
    "Recipe",
    "ValidationPart",
    "load",
    "names",
    "show",
    "to_yaml",
]


def names() -> list[str]:
    """Return the names of the packaged recipes."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def load(recipe: str | Path, overrides: Sequence[str] = (), *, trust: bool = False) -> Recipe:
    """Read a recipe.

    The architecture, and the alignment, size, color and scale of its images, are those of the weights in ``start``, if
    they record them: each of these settings that neither an override nor a file other than the packaged recipes states.

    Args:
        recipe: Name of a packaged recipe (:func:`names`) or path of a YAML file.
        overrides: "key.key=value" each, with YAML values.
        trust: Accept code (``module:function``) that a file names. Code that an override names is always accepted.

    Raises:
        ValueError: If the recipe or a key is unknown, a value is missing or of a wrong kind, or a file names code
            and is not trusted; the message names the key.
    """
    require("a recipe", "omegaconf", extra="train")
    from omegaconf import MissingMandatoryValue, OmegaConf
    from omegaconf.errors import InterpolationResolutionError

    settings = _merged(recipe, overrides, trust)
    try:
        if missing := sorted(OmegaConf.missing_keys(settings)):
            raise ValueError(f"{recipe}: {missing[0]} is not stated; give it as {missing[0]}=…")
        loaded = OmegaConf.to_object(settings)
    except MissingMandatoryValue as error:  # what missing_keys can't see
        raise ValueError(f"{recipe}: {error}") from error
    except InterpolationResolutionError as error:
        raise ValueError(
            f"{recipe}: {error.full_key}: ${{…}} stands for another key of the recipe, and there is no such key"
        ) from error
    assert isinstance(loaded, Recipe)
    loaded.check()
    return loaded


def show(recipe: str | Path, overrides: Sequence[str] = ()) -> str:
    """Return a recipe with every default as YAML; ``???`` marks values that must be stated."""
    require("a recipe", "omegaconf", extra="train")
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(_merged(recipe, overrides, trust=True))


def to_yaml(recipe: Recipe) -> str:
    """Return every value of a recipe as YAML that :func:`load` reads."""
    require("a recipe", "omegaconf", extra="train")
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.structured(recipe))


def _merged(recipe: str | Path, overrides: Sequence[str], trust: bool) -> Any:
    require("a recipe", "omegaconf", extra="train")
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError  # OmegaConf reads values by it

    merged: Any = OmegaConf.structured(Recipe)
    stated: set[str] = set()  # keys that the user states, of those that weights record
    sources: dict[str, str] = {}  # of code, the file that names it
    for place, content in _chain(recipe):
        _modernize(content)
        try:
            _apply_preset(merged, content)
            merged.merge_with(content)
            for key in OmegaConf.missing_keys(content):  # merging leaves what an earlier file stated
                OmegaConf.update(merged, key, "???")
        except OmegaConfBaseException as error:
            raise _explained(place, error, content) from error
        sources |= {key: place for key in _CODE if OmegaConf.select(content, key) is not None}
        if Path(place).parent != RECIPES:
            stated |= _stated(content)
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key:
            raise ValueError(f"override: expected key=value, got {override!r}")
        try:
            given = OmegaConf.from_dotlist([override])
        except (YAMLError, OmegaConfBaseException) as error:
            raise ValueError(f"{override}: {key}: expected a value in YAML, got {value}") from error
        if "".join(value.split()) == "{}" and OmegaConf.select(merged, key):  # merging it would change nothing
            raise ValueError(f"{override}: {key}: expected names and values to change, got none")
        try:
            _apply_preset(merged, given)
            merged.merge_with(given)
        except OmegaConfBaseException as error:
            raise _explained(override, error, given) from error
        for code in _CODE:
            if OmegaConf.select(given, code) is not None:
                sources.pop(code, None)
        stated |= _stated(given)
    _adopt(merged, stated, sources)
    for key, place in sources.items():
        value = OmegaConf.select(merged, key, throw_on_missing=False)
        if ":" in str(value or "") and not trust:
            raise ValueError(
                f"{place}: {key}: {value} is code, which runs only with trust=True (--trust), or where you name it "
                f"yourself: {key}={value}"
            )
    return merged


def _apply_preset(merged: DictConfig, content: Any) -> None:
    """Merge what a preset states where ``content`` names one; what ``content`` states beside it comes after."""
    require("a recipe", "omegaconf", extra="train")
    from omegaconf import OmegaConf

    name = OmegaConf.select(content, "data.preset", throw_on_missing=False)
    if name is not None:
        merged.merge_with({"data": preset_values(str(name))})


def _stated(content: Any) -> set[str]:
    """Return the keys that ``content`` states, of those that weights record."""
    require("a recipe", "omegaconf", extra="train")
    from omegaconf import OmegaConf

    found = set()
    for part, keys in (("network", ("name", "arguments")), ("data", _IMAGES)):
        own = OmegaConf.select(content, part, throw_on_missing=False)
        if OmegaConf.is_dict(own):
            found |= {f"{part}.{key}" for key in keys if key in own or ("preset" in own and part == "data")}
    return found


def _adopt(merged: DictConfig, stated: set[str], sources: dict[str, str]) -> None:
    """Take the architecture and its images' preparation from the weights in ``start``, if they record them."""
    require("a recipe", "omegaconf", extra="train")
    from omegaconf import OmegaConf

    start = OmegaConf.select(merged, "start", throw_on_missing=False)
    if start is None or not _is_file(Path(str(start))) or Path(str(start)).suffix != ".safetensors":
        return
    about = read_about(str(start))
    spec = about.get("network")
    if not isinstance(spec, dict) or not {"name", "arguments"} <= spec.keys():
        return
    if "network.name" not in stated:
        merged.network.name = str(spec["name"])
        sources["network.name"] = str(start)
    if "network.arguments" not in stated and merged.network.name == spec["name"]:
        merged.network.arguments = dict(spec["arguments"])
    theirs = Preprocessing.from_json(json.dumps(about.get("preprocessing")), str(start))
    template = None if theirs.alignment is None else str(theirs.alignment["template"])
    for key, value in preparation(theirs, template).items():
        if f"data.{key}" not in stated:
            merged.data[key] = value


def _is_file(path: Path) -> bool:
    """Return whether a file is there; a name that no file system can hold is no error."""
    try:
        return path.is_file()
    except OSError:
        return False


def _modernize(content: DictConfig) -> None:
    """Rewrite the spelling of recipes from before version 0.1.0."""
    require("a recipe", "omegaconf", extra="train")
    from omegaconf import OmegaConf

    if OmegaConf.select(content, "data.color", throw_on_missing=False) == "grey":
        content.data.color = "gray"
    arguments = OmegaConf.select(content, "data.arguments", throw_on_missing=False)
    if OmegaConf.is_dict(arguments) and "grey" in arguments and ":" not in str(content.data.get("name", "")):
        arguments["gray"] = arguments.pop("grey")


def _chain(recipe: str | Path) -> list[tuple[str, Any]]:
    """Return the files of a recipe as (path, content), beginning with the one that extends nothing."""
    require("a recipe", "omegaconf", extra="train")
    from omegaconf import DictConfig, OmegaConf

    chain: list[tuple[str, Any]] = []
    seen: set[Path] = set()
    name, folder = str(recipe), Path()
    while name:
        path = _find(name, folder)
        if path in seen:
            raise ValueError(f"{path}: extends: expected another recipe, got a circle")
        seen.add(path)
        try:
            content = OmegaConf.load(path)
        except Exception as error:  # PyYAML's errors have no common ancestor beside Exception
            raise ValueError(f"{path}: not YAML ({' '.join(str(error).split())})") from error
        if not isinstance(content, DictConfig):
            raise ValueError(f"{path}: expected keys and values, got a list")
        name, folder = str(content.pop("extends", "") or ""), path.parent
        chain.insert(0, (str(path), content))
    return chain


def _find(name: str, folder: Path) -> Path:
    if name in names():
        return RECIPES / f"{name}.yaml"
    path = folder / name
    if path.is_file():
        return path.resolve()
    raise ValueError(f"recipe: expected a YAML file or one of {', '.join(names())}, got {name!r}")


def _explained(place: str, error: Exception, content: Any) -> ValueError:
    """Say what the settings in ``content`` should have been, in words of a recipe rather than of OmegaConf."""
    from omegaconf import OmegaConf
    from omegaconf.errors import ConfigKeyError, ConfigTypeError

    key = "" if isinstance(error, ConfigTypeError) else str(getattr(error, "full_key", None) or "")
    if isinstance(error, ConfigKeyError) and " not in " in str(error):
        alike = difflib.get_close_matches(key, _keys(), 1, 0.5)
        return ValueError(f"{place}: {key}: there is no such key{f'; did you mean {alike[0]}?' if alike else ''}")
    key = key.partition("[")[0] or _first_mismatch(content)
    value = OmegaConf.select(content, key, throw_on_missing=False) if key else None
    while key and not _expected(key):  # a key within a value, such as data.size.0
        key = key.rpartition(".")[0]
    if not key:
        return ValueError(f"{place}: {' '.join(str(error).split())}")
    given = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
    return ValueError(f"{place}: {key}: expected {_expected(key)}, got {'null' if given is None else given}")


def _first_mismatch(content: Any) -> str:
    """Return the first key whose value is of another kind than the recipe's; OmegaConf does not name all of them."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    for name in content:
        try:
            OmegaConf.structured(Recipe).merge_with({name: content[name]})
        except OmegaConfBaseException:
            inner = content[name]
            if name not in _parts() or not OmegaConf.is_dict(inner):
                return str(name)
            for own in inner:
                try:
                    OmegaConf.structured(Recipe).merge_with({name: {own: inner[own]}})
                except OmegaConfBaseException:
                    return f"{name}.{own}"
    return ""


def _expected(key: str) -> str:
    """Return in words what a key of the recipe takes; "" for none of its keys."""
    part, _, inner = key.partition(".")
    fields = get_type_hints(Recipe)
    if part in _parts() and not inner:
        return f"a key of this part, as in {part}.{next(iter(_parts()[part]))}=…"
    hint = get_type_hints(fields[part]).get(inner) if part in _parts() else fields.get(part)
    if inner and part not in _parts():
        return "a number" if hint == dict[str, float] and "." not in inner else ""
    options = [option for option in get_args(hint) if option is not type(None)]
    optional = type(None) in get_args(hint)
    plain = options[0] if optional else hint
    if get_origin(plain) is list:
        words = f"a list, as in {key}=[…]"
        return words if get_args(plain)[0] is Any else f"{words}, of {_PLURALS[get_args(plain)[0]]}"
    if get_origin(plain) is dict:
        return f"names and values, as in {key}={{name: value}}"
    return "" if hint is None else _WORDS.get(plain, "another value") + (" or null" if optional else "")


def _parts() -> dict[str, dict[str, Any]]:
    """Return the keys of a recipe that have keys of their own, with these."""
    return {name: value for name, value in asdict(Recipe()).items() if is_dataclass(getattr(Recipe(), name))}


def _keys() -> list[str]:
    keys = []
    for name, value in asdict(Recipe()).items():
        keys += [f"{name}.{inner}" for inner in value] if isinstance(value, dict) else [name]
    return keys

"""Configuration files: Python read without executing it, JSON and YAML, with inheritance by ``_base_``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detloss.compat.configs.python_files import BASE, ConfigFileError, Inherit, evaluate

__all__ = ["load_config"]

DELETE = "_delete_"
SUFFIXES = (".py", ".json", ".yaml", ".yml")


def load_config(path: str | Path) -> dict[str, Any]:
    """The configuration in a file of mmdet, visdet or ultralytics, with what it inherits.

    Nothing is executed. In a ``.py`` file every statement assigns a literal, ``dict()``, ``list()``, ``tuple()``, ``float()``, a
    name assigned before or an entry of it, an f-string, arithmetic on numbers, or sequences joined by ``+``. ``_base_`` names
    files to inherit from, relative to this one: dicts are merged key by key, ``_delete_=True`` in a dict replaces the
    inherited one, everything else is replaced. ``_base_.model`` and ``{{_base_.model}}`` are what was inherited.

    Args:
        path: a ``.py``, ``.json``, ``.yaml`` or ``.yml`` file.

    Raises:
        ConfigFileError: a file that is not there, not valid, inherits itself or holds anything else; it names file and line.
        ImportError: a YAML file without PyYAML.
    """
    return _load(Path(path), ())


def _load(path: Path, inheriting: tuple[Path, ...]) -> dict[str, Any]:
    own = path.resolve()
    if own in inheriting:
        raise ConfigFileError(f"{path}:1: inherits itself by {BASE}: {' → '.join(p.name for p in (*inheriting, own))}")
    inherited: dict[str, Any] = {}

    def inherit(bases: Any) -> dict[str, Any]:
        bases = [bases] if isinstance(bases, str) else bases
        if not isinstance(bases, (list, tuple)) or not all(isinstance(base, str) for base in bases):
            raise ConfigFileError(f"{path}:1: {BASE} must be a path or a list of paths; got {bases!r}")
        for base in bases:
            if "::" in base:
                raise ConfigFileError(
                    f"{path}:1: {BASE} must be a path relative to this file; got {base!r}, which is in a package"
                )
            found = _load(path.parent / base, (*inheriting, own))
            twice = sorted(set(found) & set(inherited))
            if twice:
                raise ConfigFileError(f"{path}:1: two files of {BASE} assign {', '.join(twice)}")
            inherited.update(found)
        return inherited

    values = _read(path, inherit)
    values.pop(BASE, None)
    return merged(inherited, values, str(path))


def merged(base: Mapping[str, Any], own: Mapping[str, Any], where: str) -> dict[str, Any]:
    """``base`` with the values of ``own``: dicts are merged key by key, unless ``own`` has ``_delete_=True`` there."""
    result = dict(base)
    for key, value in own.items():
        if isinstance(value, Mapping):
            delete = value.get(DELETE, False)
            inner = {name: option for name, option in value.items() if name != DELETE}
            inherited = result.get(key)
            if inherited is not None and not isinstance(inherited, Mapping) and not delete:
                raise ConfigFileError(
                    f"{where}:1: {key} is a dict here and {type(inherited).__name__} in {BASE}; write {DELETE}=True to replace it"
                )
            result[key] = merged({} if delete or inherited is None else inherited, inner, where)
        else:
            result[key] = value
    return result


def _read(path: Path, inherit: Inherit) -> dict[str, Any]:
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigFileError(f"{path}: expected a file that ends in {', '.join(SUFFIXES)}; got {path.suffix or 'no ending'!r}")
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigFileError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigFileError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    if path.suffix.lower() == ".py":
        return evaluate(text, str(path), inherit)
    values = _json(text, path) if path.suffix.lower() == ".json" else _yaml(text, path)
    if not isinstance(values, dict):
        raise ConfigFileError(f"{path}:1: expected a mapping of options; got {type(values).__name__}")
    if BASE in values:
        inherit(values[BASE])
    return values


def _json(text: str, path: Path) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigFileError(f"{path}:{error.lineno}: not valid JSON ({error.msg})") from None
    except RecursionError:
        raise ConfigFileError(f"{path}:1: nested too deeply to be read") from None


def _yaml(text: str, path: Path) -> Any:
    try:
        import yaml
    except ImportError:
        raise ImportError(f"{path}: YAML files need PyYAML (pip install pyyaml); .py and .json files do not") from None
    try:
        return yaml.safe_load(text) or {}
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ConfigFileError(f"{path}:{mark.line + 1 if mark is not None else 1}: not valid YAML ({problem})") from None

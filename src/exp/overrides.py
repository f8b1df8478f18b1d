"""From overrides to plain values: Hydra composes every choice of groups once, single values are set afterwards.

A composition takes Hydra a quarter of a second. A table of experiments asks for thousands that differ in single
values, and those need no Hydra: they are set where Hydra would set them (a test compares the two).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import lru_cache
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from src.core.errors import ConfigError
from src.core.paths import CONF
from src.exp.command_line import check_groups, explain, parsed


def compose_values(overrides: Sequence[str]) -> dict[str, Any]:
    """`conf/config.yaml` with these overrides, resolved: what the same command line gives, without a running Hydra.

    The result is shared with later calls: read it only.

    Raises:
        ConfigError: an override that cannot be read, or that fits no group or key.
    """
    check_groups(overrides)
    try:
        read = [parsed(o) for o in overrides]
        values = _composed(tuple(o for o, p in zip(overrides, read, strict=True) if not _is_value(p)))
        for override in filter(_is_value, read):
            if not has_key(values, override.key_or_group):
                return resolved(_composed(tuple(overrides)))  # Hydra says what is wrong with it
            values = _with(values, override.key_or_group.split("."), override.value())
        return resolved(values)
    except (HydraException, OmegaConfBaseException) as e:
        raise ConfigError([explain(e, overrides)]) from None


def resolved(values: dict[str, Any] | DictConfig) -> dict[str, Any]:
    """The values with their interpolations filled in.

    Raises:
        ConfigError: an interpolation without its value, or a value left open (`???`).
    """
    if isinstance(values, dict):
        text = json.dumps(values, default=str)
        if "${" not in text and "???" not in text:
            return values
    try:
        return OmegaConf.to_container(  # type: ignore[return-value]
            OmegaConf.create(values), resolve=True, throw_on_missing=True
        )
    except OmegaConfBaseException as e:
        raise ConfigError([f"{getattr(e, 'full_key', None) or 'config'}: {e}"]) from None


def set_values(overrides: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """(key, value) of every override that sets a value."""
    for override in map(parsed, overrides):
        if not (override.is_delete() or override.is_sweep_override() or _is_group(override.key_or_group)):
            yield override.key_or_group, override.value()


@lru_cache(maxsize=256)
def _composed(overrides: tuple[str, ...]) -> dict[str, Any]:
    running = GlobalHydra.instance().is_initialized()  # inside an entry point; a second one is refused
    with nullcontext() if running else initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", overrides=list(overrides))
    return OmegaConf.to_container(cfg, resolve=False)  # type: ignore[return-value]


def _is_value(override: Override) -> bool:
    """Whether it sets one value (no group, no new key, no sweep, no merge into a mapping)."""
    key = override.key_or_group
    return (
        override.type == OverrideType.CHANGE
        and override.package is None
        and not override.is_sweep_override()
        and not isinstance(override.value(), dict)
        and not key.startswith("hydra")
        and not _is_group(key)
    )


@lru_cache(maxsize=4096)
def _is_group(key: str) -> bool:
    return (CONF / key).is_dir()


def has_key(values: dict[str, Any], key: str) -> bool:
    """Whether a dotted key is there."""
    at: Any = values
    for name in key.split("."):
        if not isinstance(at, dict) or name not in at:
            return False
        at = at[name]
    return True


def _with(values: dict[str, Any], path: list[str], value: Any) -> dict[str, Any]:
    """A copy along the path; the rest is shared."""
    first, *rest = path
    return {**values, first: _with(values[first], rest, value) if rest else value}

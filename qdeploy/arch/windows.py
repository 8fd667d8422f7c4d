"""Which layers of a decoder see only a window of keys."""

from __future__ import annotations

from qdeploy.arch.config import Config
from qdeploy.arch.decoder import check_layer_types


def window_of(config: Config, default: int = 0) -> int:
    """`sliding_window`: `default` where the field is absent, and 0, all keys, where it is null."""
    if "sliding_window" not in config.fields:
        return default
    return config.size("sliding_window") if config.has("sliding_window") else 0


def one_window(config: Config, layers: int, default: int = 0) -> tuple[int, ...]:
    """The window that all layers have, as `window_of` reads it; `layer_types`, where it is there, must agree."""
    window = window_of(config, default)
    check_layer_types(config, layers, ("sliding_attention" if window else "full_attention",))
    return (window,) * layers


def layer_windows(
    config: Config, layers: int, *, default_window: int | None, default_pattern: int = 1
) -> tuple[int, ...]:
    """The window of each layer, 0 for all keys.

    `layer_types` decides where it is given; else, of each `sliding_window_pattern` layers, the last sees all keys.

    Args:
        config: The whole config.json.
        layers: How many there are.
        default_window: Of `sliding_window` where the field is absent; null means none. None: the family has no windows.
        default_pattern: Of `sliding_window_pattern`; 1: without `layer_types`, every layer has the window.
    """
    if default_window is None:
        check_layer_types(config, layers, ("full_attention",))
        return (0,) * layers
    window = window_of(config, default_window)
    kinds = check_layer_types(config, layers, ("full_attention", "sliding_attention"))
    if kinds:
        if "sliding_attention" in kinds and not window:
            raise config.contradiction("layer_types, sliding_window", "sliding layers without a window", "a window")
        config.read.add("sliding_window_pattern")
        return tuple(window if kind == "sliding_attention" else 0 for kind in kinds)
    pattern = _pattern(config, default_pattern)
    return tuple(0 if pattern > 1 and (i + 1) % pattern == 0 else window for i in range(layers))


def _pattern(config: Config, default: int) -> int:
    """A number of layers; EXAONE 4 also writes letters, L for a window and G for all keys at the end."""
    letters = config.fields.get("sliding_window_pattern")
    if isinstance(letters, str):
        config.read.add("sliding_window_pattern")
        if not letters or set(letters[:-1]) - {"L"} or letters[-1] != "G":
            raise config.contradiction("sliding_window_pattern", letters, "LL...G, or a number")
        return len(letters)
    return config.size("sliding_window_pattern", default)

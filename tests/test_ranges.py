"""Every numeric setting has its range, every default and preset lies in it, and what lies outside is named."""

import dataclasses
from math import inf, nan
from typing import get_args, get_type_hints

import pytest

from bitgen.config import Config, load_preset, preset_names
from bitgen.ranges import RANGES, check_config

# Any number is right, or what uses the setting checks it against more than a range.
FREE = {"vision.trainable"}
SETTINGS = [(section, key, *limits) for section, keys in RANGES.items() for key, limits in keys.items()]


def changed(section, key, value):
    config = Config()
    setattr(getattr(config, section) if section else config, key, value)
    return config


def numeric(section, name):
    """Full names of a section's fields that hold numbers."""
    hints = get_type_hints(type(section))
    return {f"{name}.{key}".removeprefix(".") for key, hint in hints.items()
            if {int, float} & {hint, *get_args(hint)}}


def test_every_numeric_setting_has_a_range():
    config = Config()
    sections = {"": config, **{f.name: getattr(config, f.name) for f in dataclasses.fields(config)
                               if dataclasses.is_dataclass(getattr(config, f.name))}}
    fields = set().union(*(numeric(section, name) for name, section in sections.items()))
    assert fields - FREE == {f"{section}.{key}".removeprefix(".") for section, key, *_ in SETTINGS}


@pytest.mark.parametrize("name", preset_names())
def test_presets_are_in_range(name):
    check_config(load_preset(name))


@pytest.mark.parametrize("name", ["", " "])
def test_a_run_folder_has_a_name(name):
    """Else the run would be trained into the current folder."""
    with pytest.raises(ValueError, match="^output_dir must name the run's folder, got"):
        check_config(changed("", "output_dir", name))


def test_each_of_several_numbers_is_in_range():
    with pytest.raises(ValueError, match=r"^vision.std must be between 0.001 and 9, got 0.0$"):
        check_config(changed("vision", "std", (0.2, 0.0, 0.2)))


@pytest.mark.parametrize("section, key, low, high", SETTINGS)
def test_what_is_out_of_range_is_refused_by_name_and_value(section, key, low, high):
    check_config(changed(section, key, low))
    for value in (low - 1, nan, *([high + 1] if high < inf else [])):
        name = rf"{section}\.{key}" if section else key
        with pytest.raises(ValueError, match=rf"^{name} must be .*, got {value}$"):
            check_config(changed(section, key, value))

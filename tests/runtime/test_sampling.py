"""Sampling options are checked once, and a refusal names the option, its value and what is allowed."""

from __future__ import annotations

import dataclasses
import json
import math
from fractions import Fraction

import numpy as np
import pytest

from ualm.runtime import _native
from ualm.runtime.errors import InputError
from ualm.runtime.sampling import SHORTEST_SOUND_ROWS, AudioSampling, TextSampling, check_options

LARGEST_FLOAT32 = float(np.finfo(np.float32).max)

REFUSED = [
    ("temperature", -0.1, "from 0"),
    ("temperature", math.nan, "from 0"),
    ("temperature", math.inf, "from 0"),
    ("temperature", 1e39, "from 0"),
    ("temperature", 10**400, "from 0"),
    ("temperature", 1e-46, "too small"),
    ("temperature", "0.8", "a number"),
    ("temperature", None, "a number"),
    ("temperature", True, "a number"),
    ("temperature", 1j, "a number"),
    ("top_k", 0, "from 1"),
    ("top_k", -1, "from 1"),
    ("top_k", True, "whole number"),
    ("top_k", 20.0, "whole number"),
    ("top_k", 2**31, "from 1"),
    ("top_k", math.nan, "whole number"),
    ("top_p", 0, "greater than 0"),
    ("top_p", -0.5, "from 0 to 1"),
    ("top_p", 1.0001, "from 0 to 1"),
    ("top_p", math.nan, "from 0 to 1"),
    ("top_p", None, "from 0 to 1"),
    ("guidance", 0.99, "from 1"),
    ("guidance", -3, "from 1"),
    ("guidance", math.nan, "from 1"),
    ("guidance", math.inf, "from 1"),
    ("guidance", 1e39, "from 1"),
    ("guidance", True, "from 1"),
    ("max_steps", 0, "from 1"),
    ("max_steps", -5, "from 1"),
    ("max_steps", 10.0, "whole number"),
    ("max_steps", None, "whole number"),
    ("max_steps", 2**31, "from 1"),
    ("seed", -1, "from 0"),
    ("seed", 2**64, "from 0"),
    ("seed", 1.5, "whole number"),
    ("seed", "7", "whole number"),
]


@pytest.mark.parametrize("kind", [AudioSampling, TextSampling])
@pytest.mark.parametrize(("option", "value", "mend"), REFUSED)
def test_a_value_out_of_range_is_named(kind, option, value, mend):
    for refuse in (lambda: kind(**{option: value}), lambda: kind.from_mapping({option: value})):
        with pytest.raises(InputError) as caught:
            refuse()
        message = str(caught.value)
        assert f"{kind.__name__}: {option} = {value!r}" in message and mend in message


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("temperature", 0),
        ("temperature", 2.0**-149),
        ("temperature", LARGEST_FLOAT32),
        ("top_k", 1),
        ("top_k", None),
        ("top_k", 2**31 - 1),
        ("top_p", 1),
        ("top_p", 1e-9),
        ("guidance", 1),
        ("guidance", LARGEST_FLOAT32),
        ("max_steps", 1),
        ("max_steps", 2**31 - 1),
        ("seed", 0),
        ("seed", 2**64 - 1),
    ],
)
def test_the_ends_of_each_range_are_allowed(option, value):
    assert getattr(AudioSampling(**{option: value}), option) == value


@pytest.mark.parametrize("option", [field.name for field in dataclasses.fields(AudioSampling)])
def test_the_limits_are_those_of_the_sampler(option):
    least, most = _native.SAMPLING_LIMITS[option]
    if isinstance(most, int):
        beyond = [least - 1, most + 1]
    else:
        beyond = [math.nextafter(least, -math.inf), math.nextafter(most, math.inf)]
    for value in (most,) if option == "top_p" else (least, most):  # top_p must be above its least
        assert getattr(AudioSampling(**{option: value}), option) == value
    for value in beyond:
        with pytest.raises(InputError, match=option):
            AudioSampling(**{option: value})


@pytest.mark.parametrize(
    "values",
    [
        {"seed": np.int64(3), "top_k": np.uint8(4), "max_steps": np.int32(30)},
        {"seed": np.uint64(2**64 - 1)},
        {"temperature": np.float32(0.5), "top_p": np.float64(0.5), "guidance": np.float16(2)},
        {"temperature": Fraction(1, 2), "guidance": 3},
    ],
    ids=str,
)
def test_numbers_of_other_kinds_become_pythons(values):
    options = AudioSampling(**values)
    assert {name: getattr(options, name) for name in values} == values
    assert all(type(value) in (int, float) for value in vars(options).values())
    assert AudioSampling.from_mapping(json.loads(json.dumps(vars(options)))) == options


def test_an_unknown_option_is_named_with_those_known():
    with pytest.raises(InputError, match="AudioSampling: unknown option 'temprature'") as caught:
        AudioSampling.from_mapping({"temprature": 0.5})
    for field in dataclasses.fields(AudioSampling):
        assert field.name in str(caught.value)


@pytest.mark.parametrize("change", [{"top_k": 0}, {"seed": -1}])
def test_replacing_a_field_is_checked_too(change):
    with pytest.raises(InputError, match=next(iter(change))):
        dataclasses.replace(TextSampling(), **change)


@pytest.mark.parametrize("mode", ["", "FIXED", "best", None, 0, [], {}])
def test_an_unknown_mode_is_refused(mode):
    with pytest.raises(InputError, match='choose "fixed" or "reference"') as caught:
        check_options(mode, AudioSampling(), TextSampling())
    assert f"mode = {mode!r}" in str(caught.value)


@pytest.mark.parametrize("rows", range(1, SHORTEST_SOUND_ROWS))
def test_fixed_mode_needs_rows_for_one_frame_and_its_drain(rows):
    assert SHORTEST_SOUND_ROWS == 8  # a frame, and the seven rows by which the last stream is delayed
    with pytest.raises(InputError, match=f"max_steps = {rows} cannot hold one frame; at least 8"):
        check_options("fixed", AudioSampling(max_steps=rows), TextSampling())
    check_options("reference", AudioSampling(max_steps=rows), TextSampling())


def test_fixed_mode_takes_the_shortest_sound():
    check_options("fixed", AudioSampling(max_steps=8), TextSampling())


@pytest.mark.parametrize("audio", [TextSampling(), {"seed": 1}, 3, "audio"], ids=repr)
def test_options_of_another_kind_are_refused(audio):
    with pytest.raises(InputError, match=f"audio is a {type(audio).__name__}; give AudioSampling"):
        check_options("fixed", audio, TextSampling())
    with pytest.raises(InputError, match=r"text is a .*; give TextSampling"):
        check_options("fixed", AudioSampling(), {} if isinstance(audio, TextSampling) else audio)

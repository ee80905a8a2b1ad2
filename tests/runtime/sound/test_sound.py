from __future__ import annotations

import logging
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

from ualm.runtime.errors import InputError, OutputError
from ualm.runtime.sound.sound import Sound, Speech, resampled_length, to_mono


def noise(n: int, channels: int = 0, seed: int = 0, level: float = 0.1) -> np.ndarray:
    shape = (n, channels) if channels else (n,)
    return (level * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def test_float_wav_keeps_every_bit_even_beyond_full_scale(tmp_path):
    sound = Sound(noise(1001, 2, level=2.0), 22050)
    assert np.abs(sound.samples).max() > 2
    assert sound.save(tmp_path / "a.wav") == 1.0
    again = Sound.from_file(tmp_path / "a.wav")
    np.testing.assert_array_equal(again.samples, sound.samples)
    assert again.sample_rate == 22050
    assert again.duration == pytest.approx(1001 / 22050)


@pytest.mark.parametrize("extension", ["wav", "flac", "ogg"])
def test_a_mono_file_comes_as_one_dimension_and_stereo_as_two(tmp_path, extension):
    soundfile.write(tmp_path / f"mono.{extension}", noise(4000), 16000)
    soundfile.write(str(tmp_path / f"stereo.{extension}"), noise(4000, 2), 16000)
    mono, stereo = (Sound.from_file(tmp_path / f"{name}.{extension}") for name in ("mono", "stereo"))
    assert mono.samples.shape == (4000,) and mono.samples.dtype == np.float32
    assert Sound.from_file(str(tmp_path / f"stereo.{extension}")).samples.shape == stereo.samples.shape == (4000, 2)


@pytest.mark.parametrize(
    "subtype, bits, name", [("PCM_16", 16, "a.wav"), ("PCM_24", 24, "a.wav"), ("PCM_16", 16, "a.FLAC")]
)
def test_integers_within_full_scale_survive_bit_for_bit(tmp_path, caplog, subtype, bits, name):
    full = 2 ** (bits - 1)
    steps = np.random.default_rng(1).integers(-full, full, 999)
    steps[:4] = [-full, full - 1, 0, -1]
    sound = Sound((steps / full).astype(np.float32), 16000)
    assert sound.save(tmp_path / name, subtype) == 1.0
    assert not caplog.records
    np.testing.assert_array_equal(Sound.from_file(tmp_path / name).samples, sound.samples)
    assert soundfile.info(tmp_path / name).subtype == subtype


@pytest.mark.parametrize("peak", [1.0, 1.0001, 3.7, -1.5])
@pytest.mark.parametrize(
    "subtype, bits, name", [("PCM_16", 16, "a.wav"), ("PCM_24", 24, "a.wav"), (None, 24, "a.flac")]
)
def test_a_loud_sound_is_scaled_as_a_whole_and_never_clipped(tmp_path, caplog, peak, subtype, bits, name):
    samples = noise(500, level=0.05)
    samples[123] = peak
    with caplog.at_level(logging.WARNING):
        gain = Sound(samples, 16000).save(tmp_path / name, subtype)
    limit = 1 - 2.0 ** (1 - bits)
    assert gain == pytest.approx(limit / abs(peak), rel=1e-6)
    assert "quieter" in caplog.text and name in caplog.text
    written = soundfile.read(tmp_path / name, dtype="float64")[0]
    # half a step of rounding, plus float32's own where 24 bits are equally fine
    np.testing.assert_allclose(written, samples.astype(np.float64) * gain, atol=0.5001 * 2.0 ** (1 - bits), rtol=1e-7)
    assert np.flatnonzero(np.abs(written) > 0.99).tolist() == [123]


@pytest.mark.parametrize(
    "name, subtype, said",
    [
        ("a.m4a", None, ".m4a"),
        ("a.mp3", None, "9 channels"),
        ("a.mp3", "PCM_16", "MPEG_LAYER_III"),
        ("a", None, "without extension"),
        ("a.wav", "PCM_U8", "PCM_U8"),
        ("a.flac", "FLOAT", "FLOAT"),
        ("a.flac", None, "9 channels"),
    ],
)
def test_what_cannot_be_written_is_refused_and_leaves_nothing(tmp_path, name, subtype, said):
    with pytest.raises(InputError, match=said):
        Sound(noise(100, 9), 16000).save(tmp_path / name, subtype)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_an_output_error_that_keeps_the_old_file(tmp_path):
    path = tmp_path / "a.wav"
    path.write_bytes(b"old")
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(OutputError, match=r"a\.wav: not written"):
            Sound(noise(16000), 16000).save(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [file.name for file in tmp_path.iterdir()] == ["a.wav"] and path.read_bytes() == b"old"


def test_a_missing_folder_is_an_output_error(tmp_path):
    with pytest.raises(OutputError, match="nowhere"):
        Sound(noise(100), 16000).save(tmp_path / "nowhere" / "a.wav")


def bad_file(folder: Path, kind: str) -> Path:
    path = folder / f"{kind}.wav"
    if kind == "folder":
        path.mkdir()
    elif kind == "empty":
        path.touch()
    elif kind == "text":
        path.write_text("this is no sound\n" * 100)
    elif kind == "headless":
        path.write_bytes(b"RIFF\x24\0\0\0WAVE")
    elif kind == "silent":
        soundfile.write(path, np.zeros((0, 2)), 16000)
    elif kind == "nan":
        soundfile.write(path, np.array([[0, 0], [0, np.nan]], np.float32), 16000, subtype="FLOAT")
    return path


@pytest.mark.parametrize(
    "kind, said",
    [
        ("missing", "no such file"),
        ("folder", "not a file"),
        ("empty", "0 bytes"),
        ("text", "Format not recognised.*FLAC"),
        ("headless", "data.*FLAC"),
        ("silent", "no samples"),
        ("nan", r"nan at index \(1, 1\)"),
    ],
)
def test_a_bad_file_is_refused_by_name(tmp_path, kind, said):
    with pytest.raises(InputError, match=rf"{kind}\.wav: .*{said}"):
        Sound.from_file(bad_file(tmp_path, kind))


@pytest.mark.parametrize(
    "samples, said",
    [
        (np.zeros(0, np.float32), "no samples"),
        (np.zeros((0, 2)), "no samples"),
        (np.zeros((2, 160)), "transpose"),
        (np.zeros((2, 2, 2)), "shape"),
        (np.float32(0.5), "shape"),
        (np.zeros(5, np.int16), "32768"),
        (np.zeros(5, bool), "full scale"),
        (np.array(["a", "b"]), "full scale"),
        (np.zeros(5, complex), "full scale"),
        (np.array([0, 1, np.nan, np.inf]), "nan at index 2"),
        (np.array([[0.0, 0], [0, -np.inf], [np.nan, 0]]), r"-inf at index \(1, 1\)"),
        (np.array([0, 1e300]), r"1e\+300 at index 1"),
    ],
)
def test_samples_that_are_no_sound_are_refused(samples, said):
    with pytest.raises(InputError, match=said):
        Sound(samples, 16000)


@pytest.mark.parametrize("rate", [0, -16000, 16000.0, "16000", True, None])
def test_a_rate_must_be_a_positive_whole_number(rate):
    with pytest.raises(InputError, match="sample_rate"):
        Sound(noise(10), rate)


@pytest.mark.parametrize(
    "codes", [np.zeros((3, 7), int), np.zeros(8, int), np.zeros((3, 8)), np.full((1, 8), -1), np.full((1, 8), 40000)]
)
def test_codes_of_another_form_are_refused(codes):
    with pytest.raises(InputError, match="codes"):
        Sound(noise(10), 16000, codes)


def test_a_sound_converts_floats_and_cannot_be_changed():
    given = noise(10).astype(np.float64)
    sound = Sound(given, np.int64(16000), codes=np.ones((3, 8), np.int64))
    assert sound.samples.dtype == np.float32 and sound.codes.dtype == np.int16 and type(sound.sample_rate) is int
    with pytest.raises(ValueError):
        sound.samples[0] = 1
    mine = noise(10)
    Sound(mine, 16000)
    mine[0] = 1  # the caller's own array stays writable


def test_speech_marks_a_sound_or_a_path_and_nothing_else():
    assert Speech(Path("a.wav")).content == Path("a.wav")
    with pytest.raises(InputError, match="ndarray"):
        Speech(noise(10))


@pytest.mark.parametrize("rate", [22050, 44100])
@pytest.mark.parametrize("n", [1, 2, 441, 4410, 4411, 30011])
def test_resampling_is_soxr_hq_of_channel_0_with_the_length_rounded_up(rate, n):
    samples = np.stack([noise(n, seed=1), noise(n, seed=2)], axis=1) if n > 1 else noise(1, 1)
    resampled = to_mono(Sound(samples, rate), 16000)
    assert resampled.dtype == np.float32 and len(resampled) == -(-n * 16000 // rate)
    direct = soxr.resample(samples[:, 0].copy(), rate, 16000)
    shared = min(len(direct), len(resampled))
    np.testing.assert_array_equal(resampled[:shared], direct[:shared])
    assert shared >= len(resampled) - 1 and not resampled[shared:].any()


@pytest.mark.parametrize("rate", [8000, 22050, 48000])
def test_a_tone_keeps_its_pitch_phase_and_level(rate):
    tone = np.sin(2 * np.pi * 1000 * np.arange(rate // 2) / rate).astype(np.float32)
    resampled = to_mono(Sound(tone, rate), 16000)
    expected = np.sin(2 * np.pi * 1000 * np.arange(8000) / 16000)
    # not at the ends, where the filter sees silence; soxr HQ is accurate to about 100 dB
    np.testing.assert_allclose(resampled[1000:-1000], expected[1000:-1000], atol=1e-4)


def test_equal_rates_copy_nothing():
    sound = Sound(noise(100), 16000)
    assert to_mono(sound, 16000) is sound.samples


def test_the_resampled_length_keeps_the_rounding_of_the_float_product():
    assert resampled_length(44100, 44100, 16000) == 16000
    assert resampled_length(44101, 44100, 16000) == 16001
    # 22255 * (16000 / 22255) is 16000.000000000002 in floats: librosa gives one sample more than exact arithmetic does
    assert resampled_length(22255, 22255, 16000) == 16001
    assert len(to_mono(Sound(noise(22255), 22255), 16000)) == 16001


def test_equal_sounds_give_equal_files_at_any_time(tmp_path: Path) -> None:
    sound = Sound(np.linspace(-1.5, 1.5, 800, dtype=np.float32), 16000)
    sound.save(tmp_path / "a.wav")
    time.sleep(1.1)  # libsndfile stamps the second
    sound.save(tmp_path / "b.wav")
    assert (tmp_path / "a.wav").read_bytes() == (tmp_path / "b.wav").read_bytes()
    np.testing.assert_array_equal(Sound.from_file(tmp_path / "a.wav").samples, sound.samples)

"""Sounds are written in the formats of libsndfile, and made quieter before a lossy format would clip them."""

from __future__ import annotations

import io
import logging
from pathlib import Path

import numpy as np
import pytest
import soundfile

from support.recordings import lag
from support.sounds import make_sound
from ualm.runtime import InputError, OutputError, Sound
from ualm.runtime.sound import writing as sound_out
from ualm.runtime.sound.sound import check_writable

LOSSY = [("a.mp3", None), ("a.ogg", None), ("a.ogg", "OPUS"), ("a.opus", None)]


@pytest.mark.parametrize(("name", "subtype"), LOSSY)
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("rate", [16000, 48000])
def test_a_lossy_file_holds_the_sound_in_place(tmp_path, caplog, name, subtype, channels, rate):
    samples = make_sound(1.5, rate, channels)
    assert Sound(samples.T, rate).save(tmp_path / name, subtype) == 1.0 and not caplog.records
    info = soundfile.info(tmp_path / name)
    assert (info.samplerate, info.channels) == (rate, channels)
    assert info.subtype == (subtype or {".mp3": "MPEG_LAYER_III", ".ogg": "VORBIS", ".opus": "OPUS"}[Path(name).suffix])
    found = Sound.from_file(tmp_path / name).samples.reshape(-1, channels).T
    assert found.shape == samples.shape
    for mine, theirs in zip(samples, found, strict=True):
        # at most half a sample from Opus's own resampling; each encoder's delay is stored in the file and removed
        assert abs(lag(theirs, mine)) <= 1
        # four tones over noise, which these codecs replace: Opus in 16 kHz stereo keeps the least, 0.83
        assert np.corrcoef(mine, theirs)[0, 1] > 0.8


@pytest.mark.parametrize(("name", "subtype"), LOSSY)
@pytest.mark.parametrize("level", [1.0, 3.0])
def test_a_loud_sound_is_made_quieter_until_what_is_decoded_fits(tmp_path, caplog, name, subtype, level):
    """Noise up to full scale: a codec that drops part of it exceeds full scale where the sound did not."""
    noise = np.clip(0.6 * np.random.default_rng(1).standard_normal(16000), -1, 1).astype(np.float32)
    with caplog.at_level(logging.WARNING):
        gain = Sound(level * noise, 16000).save(tmp_path / name, subtype)
    decoded = soundfile.read(tmp_path / name)[0]
    # no more than needed: half a decibel for each of a few attempts
    assert 0.5 < np.abs(decoded).max() < 1 and 0.2 < gain * level < 1
    assert "quieter" in caplog.text and name in caplog.text
    # as loud as it was, times the gain: lossy codecs keep the power within a decibel or so of what they keep
    ratio = np.sqrt(np.mean(decoded**2) / np.mean((level * noise) ** 2))
    assert ratio == pytest.approx(gain, rel=0.35)


def test_a_long_vorbis_file_is_written(tmp_path):
    samples = np.tile(make_sound(10.0)[0], 30)
    Sound(samples, 16000).save(tmp_path / "a.ogg")
    assert soundfile.info(tmp_path / "a.ogg").frames == len(samples)


@pytest.mark.parametrize(
    ("name", "rate", "channels", "piece"),
    [
        ("a.opus", 44100, 1, "Opus only supports"),
        ("a.ogg", 16000, 300, "300 channels"),
        ("a.mp3", 96000, 1, "96000 Hz"),
        ("a.mp3", 16000, 3, "3 channels"),
    ],
)
def test_a_form_that_the_format_lacks_is_refused_before_the_sound_is_made(tmp_path, name, rate, channels, piece):
    check_writable(tmp_path / name)
    with pytest.raises(InputError, match=piece):
        check_writable(tmp_path / name, sample_rate=rate, channels=channels)
    with pytest.raises(InputError, match=piece):
        Sound(np.zeros((1000, channels), np.float32), rate).save(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_libsndfile_that_lacks_a_format_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(sound_out.soundfile, "check_format", lambda format, subtype: format != "MP3")
    with pytest.raises(InputError, match=r"a\.mp3: libsndfile [\d.]+ cannot write MPEG_LAYER_III here; use \.wav"):
        check_writable(tmp_path / "a.mp3")
    check_writable(tmp_path / "a.ogg")


@pytest.mark.parametrize("format", [None, "wav", "flac", "mp3", "ogg", "opus", "FLAC"])
def test_a_file_object_takes_any_format(format):
    sound, file = Sound(make_sound(0.5)[0], 16000), io.BytesIO()
    assert sound.save(file, format=format) == 1.0
    assert soundfile.info(io.BytesIO(file.getvalue())).format == {"opus": "OGG", None: "WAV"}.get(
        format, (format or "").upper()
    )
    assert len(Sound.from_file(file.getvalue()).samples) == 8000


def test_what_is_no_target_is_refused(tmp_path):
    sound = Sound(make_sound(0.1)[0], 16000)
    for target in (None, 3, b"a.wav", object()):
        with pytest.raises(InputError, match="cannot be written to"):
            sound.save(target)
    with pytest.raises(InputError, match='mode "wb"'):
        sound.save(io.StringIO())
    with pytest.raises(InputError, match=r"says \.wav, but the format 'flac'"):
        sound.save(tmp_path / "a.wav", format="flac")
    with pytest.raises(InputError, match=r"cannot write \.aac"):
        sound.save(io.BytesIO(), format="aac")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_file_object_that_takes_no_more_is_an_output_error():
    with open("/dev/full", "wb", buffering=0) as full, pytest.raises(OutputError, match="No space left"):
        Sound(make_sound(0.1)[0], 16000).save(full)

"""Recordings of phones and browsers, read with the extra av."""

from __future__ import annotations

import builtins
import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from support.recordings import ffmpeg, lag, wav
from support.sounds import make_sound
from ualm.runtime import InputError, Sound

#: Container, codec, rate, suffix; most padding at the end (a frame of the codec); signal to noise in dB. The sounds are
#: tones over noise, which lossy codecs replace: at 128 kb/s per channel the difference is at least 10 dB down; 14 and
#: more was measured.
RECORDINGS = [
    ("mp4", "aac", 44100, "m4a", 1024, 10),
    ("mp4", "aac", 16000, "mp4", 1024, 10),
    ("3gp", "aac", 16000, "3gp", 1024, 10),
    ("mov", "aac", 48000, "mov", 1024, 10),
    ("webm", "libopus", 48000, "webm", 0, 10),
    ("mp4", "alac", 16000, "m4a", 0, 80),
    ("matroska", "flac", 16000, "mka", 0, 80),
]


@pytest.mark.parametrize(("container", "codec", "rate", "suffix", "padding", "floor"), RECORDINGS)
@pytest.mark.parametrize("channels", [1, 2])
def test_a_recording_is_read_in_place(tmp_path, capfd, container, codec, rate, suffix, padding, floor, channels):
    samples = make_sound(1.5, rate, channels)
    path = tmp_path / f"recorded.{suffix}"
    path.write_bytes(ffmpeg(samples, container, codec, rate))
    sound = Sound.from_file(path)
    assert sound.sample_rate == rate and sound.notes == () and sound.samples.dtype == np.float32
    assert sound.samples.ndim == channels
    found = sound.samples.reshape(len(sound.samples), channels).T
    assert 0 <= found.shape[1] - samples.shape[1] <= padding
    found = found[:, : samples.shape[1]]
    for mine, theirs in zip(samples, found, strict=True):
        # the resampling inside Opus may shift it by a fraction of a sample; the priming (312 or 1,024 samples) is
        # removed
        assert abs(lag(theirs, mine)) <= 1
        assert np.corrcoef(mine, theirs)[0, 1] > 0.95
        assert 10 * np.log10(np.mean(mine**2) / np.mean((mine - theirs) ** 2)) > floor
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "codec", ["pcm_u8", "pcm_s16le", "pcm_s24le", "pcm_s32le", "pcm_f32le", "pcm_f64le"], ids=lambda codec: codec
)
def test_every_sample_format_has_its_full_scale(codec):
    samples = make_sound(0.5)
    found = Sound.from_file(ffmpeg(samples, "matroska", codec, 16000)).samples
    step = {"pcm_u8": 2**-7, "pcm_s16le": 2**-15}.get(codec, 2**-22)
    np.testing.assert_allclose(found, samples[0], atol=1.01 * step, rtol=0)


def test_a_browsers_webm_of_unknown_length_is_read():
    samples = make_sound(1.5, 48000)
    assert len(Sound.from_file(ffmpeg(samples, "webm", "libopus", 48000, pipe=True)).samples) == 72000


@pytest.mark.parametrize(
    "rubbish",
    [bytes(1000), b"HTTP/1.1 200 OK\r\n" * 40, np.random.default_rng(1).integers(0, 255, 3000, np.uint8).tobytes()],
    ids=["zeros", "text", "random"],
)
def test_an_mp3_with_rubbish_before_its_first_frame_is_read(rubbish):
    samples = make_sound(2.0)
    mp3 = ffmpeg(samples, "mp3", "libmp3lame", 16000)
    with pytest.raises(soundfile.SoundFileError):
        soundfile.read(io.BytesIO(rubbish + mp3))
    # the table of contents, which would give the encoder's delay, is only looked for at the beginning
    assert 0 <= len(Sound.from_file(rubbish + mp3).samples) - 32000 <= 2 * 1152


def test_a_recording_that_was_cut_off_is_told(caplog):
    file = ffmpeg(make_sound(2.0, 48000), "webm", "libopus", 48000)
    sound = Sound.from_file(file[: len(file) // 2])
    assert 0.5 < sound.duration < 1.5
    assert "it claims 2.0" in sound.notes[0] and "cut off" in caplog.text


def test_a_recording_longer_than_is_heard_is_left_early():
    file = ffmpeg(make_sound(4.0, 48000), "webm", "libopus", 48000)
    with pytest.raises(InputError, match=r"bytes of a sound: .*longer than the 2 s that are heard"):
        Sound.from_file(file, longest=2)


def test_errors_of_av_are_one_input_error_that_names_the_file(tmp_path):
    file = ffmpeg(make_sound(1.0), "mp4", "aac", 16000)
    for number, bad in enumerate((file[: len(file) // 2], file[:20], file[:8] + bytes(500))):
        path = tmp_path / f"{number}.m4a"
        path.write_bytes(bad)
        with pytest.raises(InputError, match=rf"{number}\.m4a: not a sound file that can be read .*FFmpeg: ") as caught:
            Sound.from_file(path)
        assert "\n" not in str(caught.value)


def test_a_film_without_sound_says_so(tmp_path):
    import av

    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 16
        for packet in [*stream.encode(av.VideoFrame(16, 16, "yuv420p")), *stream.encode(None)]:
            container.mux(packet)
    with pytest.raises(InputError, match="holds no audio stream"):
        Sound.from_file(out.getvalue())


@pytest.mark.parametrize(
    "listing",
    [b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n%s\n#EXT-X-ENDLIST\n", b"ffconcat version 1.0\nfile '%s'\n"],
    ids=["hls", "concat"],
)
def test_a_playlist_opens_no_other_file(tmp_path: Path, listing: bytes):
    (tmp_path / "a.wav").write_bytes(wav(np.zeros(100, np.int16)))
    with pytest.raises(InputError, match="not a sound file"):
        Sound.from_file(listing % str(tmp_path / "a.wav").encode())


def test_without_the_extra_the_error_names_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(InputError, match=r'Format not recognised.*extra `av`.*pip install "\.\[av\]"'):
        Sound.from_file(ffmpeg_m4a())


def ffmpeg_m4a() -> bytes:
    """The beginning of any m4a; nothing in it is decoded."""
    return b"\0\0\0\x20ftypM4A \0\0\0\0M4A mp42isom\0\0\0\0" + bytes(100)


def test_what_libsndfile_reads_imports_no_av(monkeypatch: pytest.MonkeyPatch):
    imported, original = [], builtins.__import__

    def watch(name: str, *arguments: Any, **options: Any) -> Any:
        imported.append(name)
        return original(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", watch)
    Sound.from_file(wav(np.zeros(100, np.int16)))
    assert "av" not in imported
    with pytest.raises(InputError):
        Sound.from_file(ffmpeg_m4a())
    assert "av" in imported

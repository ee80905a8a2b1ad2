from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from tokenizers import Tokenizer

from ualm.export.tiny.corpus.domain import DRUMS, HIT, HOP, LAST, NOTES, SLOTS, Clip, FrameBank, sounds
from ualm.export.tiny.corpus.soundfont import SOUNDFONT, render_sounds
from ualm.export.tiny.corpus.tokens import TEXT_SIZE, content_tokens, train_tokenizer
from ualm.export.tiny.corpus.writer import Studio
from ualm.runtime.vocabulary import Vocabulary

#: The contents of renders.flac, one after the other: real renders of the MIT soundfont, 24 frames each.
FIXTURE = (
    ("piano", 72),
    ("vibraphone", 74),
    ("marimba", 76),
    ("guitar", 77),
    ("trumpet", 79),
    ("oboe", 81),
    ("clarinet", 83),
    ("steel drum", 84),
    ("kick drum", HIT),
    ("snare drum", HIT),
    ("closed hi-hat", HIT),
    ("cowbell", HIT),
)


def tone(note: float, partials: tuple[float, ...] = (1.0, 0.5, 0.3), seconds: float = 0.5) -> np.ndarray:
    """A synthetic note that decays, float32 [seconds * 16000]."""
    hertz, time = 440 * 2 ** ((note - 69) / 12), np.arange(int(16000 * seconds)) / 16000
    wave = sum(a * np.sin(2 * np.pi * k * hertz * time) for k, a in enumerate(partials, 1))
    ends = np.minimum(1, np.minimum(time / 0.002, (seconds - time) / 0.01))  # a sharp edge would be another onset
    return (0.2 * ends * wave * np.exp(-3 * time)).astype(np.float32)


def repeated(name: str) -> list[Clip]:
    """Every note of a sound, or its hit, played once, twice and three times at every tempo."""
    return [
        Clip(name, (note,) * count, tempo)
        for note in ((HIT,) if name in DRUMS else NOTES)
        for count in (1, 2, 3)
        for tempo in (SLOTS if count > 1 else ("moderate",))
    ]


@pytest.fixture(scope="session")
def real_renders() -> dict[tuple[str, int], np.ndarray]:
    """Real renders of a few sounds, float32 [7680] each."""
    samples, rate = soundfile.read(Path(__file__).with_name("renders.flac"), dtype="float32")
    assert rate == 16000
    return dict(zip(FIXTURE, samples.reshape(len(FIXTURE), LAST * HOP), strict=True))


@pytest.fixture(scope="session")
def soundfont_renders() -> np.ndarray:
    """Every sound of the domain from the MIT soundfont, float32 [74, 7680]."""
    if shutil.which("fluidsynth") is None or not SOUNDFONT.is_file():
        pytest.skip("needs fluidsynth and fluidr3mono-gm-soundfont (apt-get install)")
    return render_sounds()


@pytest.fixture(scope="session")
def soundfont_bank(soundfont_renders: np.ndarray) -> FrameBank:
    return FrameBank(soundfont_renders)


@pytest.fixture(scope="session")
def bank(real_renders: dict[tuple[str, int], np.ndarray]) -> FrameBank:
    """All sounds of the domain: real ones where available, otherwise decaying tones or noise."""
    rng, time = np.random.default_rng(0), np.arange(LAST * HOP) / 16000
    rendered = []
    for number, (name, note) in enumerate(sounds()):
        hertz = 440 * 2 ** ((note - 69) / 12)
        partials = [np.sin(2 * np.pi * k * hertz * time) / k ** (1 + number % 3) for k in (1, 2, 3)]
        tone = rng.standard_normal(len(time)) if note == HIT else sum(partials)
        made = (0.2 * tone * np.exp(-4 * time)).astype(np.float32)
        rendered.append(real_renders.get((name, note), made))
    return FrameBank(np.stack(rendered))


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return train_tokenizer()


@pytest.fixture(scope="session")
def vocabulary() -> Vocabulary:
    return Vocabulary.in_order(("text", "discrete_audio"), TEXT_SIZE, 1024)


@pytest.fixture(scope="session")
def studio(bank: FrameBank, tokenizer: Tokenizer, vocabulary: Vocabulary) -> Studio:
    """A studio whose codes are random, but different for every frame."""
    codes = np.random.default_rng(1).integers(1, 1024, (len(bank.frames), 8))
    codes[0] = 0
    return Studio(bank, codes, vocabulary, lambda text: tokenizer.encode(text).ids, content_tokens(tokenizer))

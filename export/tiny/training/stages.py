"""The stages of making the tiny model, each of which leaves its result in the work folder for the next."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import XcodecModel

from ....runtime.errors import InputError
from ....runtime.files.writing import replacing_file
from ....runtime.vocabulary import Vocabulary
from ..corpus.domain import FrameBank, sounds
from ..corpus.soundfont import SOUNDFONT, render_sounds
from ..corpus.tokens import TEXT_SIZE, content_tokens, load_tokenizer, train_tokenizer
from ..corpus.writer import Studio
from . import loop as training
from .codec import CODEBOOK, build_codec, make_model
from .network import TinyShape, TinyUalm
from .run_folder import write_run
from .starting_point import start_codes

RENDERS, CODEC, TOKENIZER = "renders.npy", "codec.pt", "tokenizer.json"
_CARD = Path(__file__).parents[1] / "judging" / "MODEL_CARD.md"


class Workshop:
    """One work folder."""

    def __init__(self, folder: Path, seed: int = 0) -> None:
        self.folder, self.seed = folder, seed

    def data(self, soundfont: Path = SOUNDFONT) -> None:
        """Render the sounds, build the codec and train the tokenizer; existing results are kept."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (self.folder / RENDERS).is_file():
            rendered = render_sounds(soundfont)
            with replacing_file(self.folder / RENDERS) as temporary, open(temporary, "wb") as file:
                np.save(file, rendered)
        if not (self.folder / CODEC).is_file():
            codec = build_codec(self.bank().frames, self.seed)
            state = {"model": codec.model.state_dict(), "codes": torch.from_numpy(codec.codes)}
            with replacing_file(self.folder / CODEC) as temporary:
                torch.save(state, temporary)
        if not (self.folder / TOKENIZER).is_file():
            with replacing_file(self.folder / TOKENIZER) as temporary:
                train_tokenizer(self.seed).save(str(temporary))

    def bank(self) -> FrameBank:
        return FrameBank(np.load(self._made(RENDERS)))

    def codec(self) -> tuple[XcodecModel, np.ndarray]:
        """The codec, and the codes int64 [N, 8] of the bank's frames."""
        state = torch.load(self._made(CODEC), weights_only=True)
        model = make_model()
        model.load_state_dict(state["model"])
        return model, state["codes"].numpy()

    def tokenizer(self) -> Tokenizer:
        return load_tokenizer(self._made(TOKENIZER))

    def studio(self) -> Studio:
        tokenizer = self.tokenizer()
        vocabulary = Vocabulary.in_order(("text", "discrete_audio"), TEXT_SIZE, CODEBOOK)
        return Studio(
            self.bank(), self.codec()[1], vocabulary, lambda text: tokenizer.encode(text).ids, content_tokens(tokenizer)
        )

    def network(self, shape: TinyShape | None = None) -> TinyUalm:
        """A new network; training resumes from the state in the work folder."""
        training.seed_everything(self.seed)
        vocabulary = Vocabulary.in_order(("text", "discrete_audio"), TEXT_SIZE, CODEBOOK)
        network = TinyUalm(shape or TinyShape(), vocabulary, len(sounds()) + 1)
        start_codes(network, self.bank(), self.codec()[1], self.seed)
        return network

    def train(
        self, recipe: training.Recipe, until: int | None = None, save_seconds: float = 180.0, device: str = "cpu"
    ) -> bool:
        """Returns True when all steps are done. ``device``: torch's name; a state may resume on another one."""
        network = self.network().to(find_device(device))
        return training.train(network, self.studio(), recipe, self.folder, until=until, save_seconds=save_seconds)

    def write(self, run: Path) -> int:
        """Write the training run from the newest state; returns its step."""
        state = training.load_state(self.folder / training.STATE)
        network = self.network()
        network.load_state_dict(state["network"])
        about = {"recipe": state["recipe"], "mix": dict(training.MIX), "shape": asdict(network.shape)}
        about |= {"step": state["step"], "rows": state["rows"], "cpu_seconds": state["cpu_seconds"]}
        about |= {"held_out_percent": training.HELD_OUT_PERCENT}
        about |= {"curves": list(training.curves(self.folder / training.CURVES))}
        documents = {"training.json": json.dumps(about, indent=1), _CARD.name: _CARD.read_text(encoding="utf-8")}
        codec, codes = self.codec()
        step = int(state["step"])
        write_run(run, network, codec, self.tokenizer(), codes=codes, step=step, documents=documents)
        return int(state["step"])

    def _made(self, name: str) -> Path:
        path = self.folder / name
        if not path.is_file():
            raise InputError(f"{path}: no such file; run the data stage first")
        return path


def find_device(name: str) -> torch.device:
    """Raise :class:`InputError` for a device that torch does not know, or that this machine lacks."""
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"--device {name}: choose cpu, or cuda for the first GPU, cuda:1 for the second") from None
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise InputError(f"--device {name}: torch sees no such GPU here; leave it out to train on the CPU")
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"--device {name}: trains on cpu or cuda")
    return device

"""The frame sampler on a device, and the tables that it reads there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...bundle.bundle import Bundle
from ...files.safetensors_reader import widen
from ...sampling import AudioSampling, Mode, TextSampling
from ...vocabulary import Modality
from .cache import DeviceCache
from .device import Buffer, Device, number_code
from .loop import RING, Outbox
from .protocol import DeviceStep


class SamplerTables:
    """On a device: the embedding as it is stored, and the codebooks already projected to the codec's input."""

    def __init__(self, device: Device, bundle: Bundle) -> None:
        embedding, bias = bundle.table("embedding"), bundle.table("codec.rvq_bias")
        self._kept = [device.uploaded(table) for table in (embedding, widen(bundle.table("codec.rvq_table")), bias)]
        place, codebooks, offset = (buffer.address for buffer in self._kept)
        self.vocabulary, self.hidden = embedding.shape
        vocabulary, cuda = bundle.manifest.vocabulary, device.cuda
        # numpy has no bfloat16: its bits come as uint16
        number = "bfloat16" if embedding.dtype.itemsize == 2 else "float32"
        self.tables = cuda.Tables(
            embedding=place,
            embedding_number=number_code(cuda, number),
            rvq=codebooks,
            rvq_bias=offset,
            vocabulary=self.vocabulary,
            hidden=self.hidden,
            latent=len(bias),
        )
        self.layout = cuda.Layout(
            codebook_size=vocabulary.codebook_size,
            text_size=vocabulary.text_size,
            audio_base=vocabulary.audio_base,
            text_base=vocabulary.text_base,
        )


class DeviceSampler:
    """The sampler of one sequence: its state lies on the device, and only launches change it."""

    def __init__(self, device: Device, tables: SamplerTables, outbox: Outbox) -> None:
        self._device, self._tables, self._outbox = device, tables, outbox
        self._state = device.allocate(device.cuda.STATE_BYTES)

    def begin(self, modality: Modality, sampling: AudioSampling | TextSampling, *, mode: Mode, segment: int) -> None:
        """Begin a segment, after what is on the stream."""
        self._device.cuda.begin_segment(
            state=self._state.address,
            progress=self._outbox.progress.address,
            kind="text" if modality == "text" else mode,
            temperature=float(sampling.temperature),
            top_k=sampling.top_k or 0,
            top_p=float(sampling.top_p),
            guidance=float(sampling.guidance),
            max_steps=sampling.max_steps,
            seed=sampling.seed,
            segment=segment,
            stream=self._device.stream.handle,
        )

    def embed(self, rows: int, count: int, out: int, *, copies: int) -> None:
        """Sums of the embeddings of ``count`` rows int32 [count, 8] at ``rows``, each ``copies`` times, to ``out``."""
        self._device.cuda.embed_rows(
            self._tables.tables, rows=rows, count=count, copies=copies, out=out, stream=self._device.stream.handle
        )

    def bound(self, step: DeviceStep, modality: Modality, branches: int, columns: int) -> Callable[[], None]:
        """Draws a row from a step's logits and feeds it back as the step's next input: a call without arguments."""
        sound = modality == "audio"
        launch: Any = self._device.cuda.SampleLaunch(
            states=self._state.address,
            logits=step.logits.address,
            logits_stride=columns,
            sequences=1,
            branches=branches,
            text=not sound,
            layout=self._tables.layout,
            tables=self._tables.tables,
            embeddings=step.embeddings.address,
            embedding_copies=branches,
            rows=self._outbox.rows.address,
            row_capacity=RING,
            latents=self._outbox.latents.address if sound else 0,
            latent_capacity=RING,
            progress=self._outbox.progress.address,
        )
        stream = self._device.stream.handle
        return lambda: launch(stream)


def fill_null_prefix(
    device: Device,
    cache: DeviceCache,
    null: tuple[Buffer, Buffer],
    angles: tuple[Buffer, Buffer],
    first: int,
    last: int,
) -> None:
    """Null prefix of positions [first, last) of branch 1 in every layer, on the stream.

    ``null``: keys, not rotated, and values, float32 [layers, kv_heads, head_dim]; ``angles``: cos and sin of every
    position, float32 [positions, head_dim / 2].
    """
    shape, cuda = cache.shape, device.cuda
    cuda.fill_null_prefix(
        shape.layout(cuda),
        keys=cache.null_addresses.address,
        values=cache.null_addresses.address + shape.layers * 8,
        null_keys=null[0].address,
        null_values=null[1].address,
        cos=angles[0].address,
        sin=angles[1].address,
        first=first,
        last=last,
        stream=device.stream.handle,
    )

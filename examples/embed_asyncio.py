"""Serve several listeners from one asyncio program.

    python examples/embed_asyncio.py "a trumpet plays C5" "a marimba plays E5 and G5"

One model serves any number of tasks. Each sound is computed on its own thread, and the event loop is free while its
next chunk is awaited. Cancelling a task (a timeout, a listener who left) stops its sound.
"""

from __future__ import annotations

import argparse
import asyncio
import time

from ualm import Model


async def listen(model: Model, caption: str, seed: int, began: float) -> float:
    """Receive one sound chunk by chunk; returns its seconds."""
    seconds = 0.0
    async with model.stream(caption, seed=seed, profile="first_sound") as stream:
        async for chunk in stream:  # in a server: await socket.send_bytes(chunk.samples.tobytes())
            seconds += len(chunk.samples) / chunk.sample_rate
            print(f"after {time.perf_counter() - began:.2f} s: {seconds:.2f} s of {caption!r}")
    return seconds


async def serve(bundle: str | None, captions: list[str]) -> None:
    model = await asyncio.to_thread(Model.open, bundle)  # reads and maps files
    try:
        began = time.perf_counter()
        sounds = [listen(model, caption, seed, began) for seed, caption in enumerate(captions)]
        for caption, seconds in zip(captions, await asyncio.gather(*sounds), strict=True):
            print(f"{caption}: {seconds:.2f} s")
    finally:
        await asyncio.to_thread(model.close)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("captions", nargs="+", help="one sound each")
    parser.add_argument(
        "-b", "--bundle", help="folder made by `ualm export`; by default the model that comes with ualm"
    )
    arguments = parser.parse_args()
    asyncio.run(serve(arguments.bundle, arguments.captions))


if __name__ == "__main__":
    main()

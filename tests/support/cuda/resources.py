"""Resources of each kernel, as reported by the compiler: compiled for every architecture, not run.

``python tests/support/cuda/resources.py`` compiles, and writes ``docs/cuda_resources.json`` and the table of
``docs/cuda.md``.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[3]
KERNELS = sorted((ROOT / "csrc/cuda").glob("*.cu"))
RECORD, PAGE = ROOT / "docs/cuda_resources.json", ROOT / "docs/cuda.md"
ARCHITECTURES = ("80", "86", "87", "89", "90", "100", "110", "120")
_BEGIN, _END = "<!-- resources -->\n", "<!-- end of resources -->"

#: kernel -> architecture ("sm_80") -> bytes and counts.
Resources = dict[str, dict[str, dict[str, int]]]


def nvcc() -> str | None:
    """The compiler, found as csrc/cuda/build.cmake finds it."""
    folders = [Path(os.environ[name]) / "bin" for name in ("CUDA_HOME", "CUDA_PATH") if name in os.environ]
    path = os.pathsep.join(map(str, [os.environ.get("PATH", ""), *folders, "/usr/local/cuda/bin"]))
    return shutil.which("nvcc", path=path)


def version(compiler: str) -> str:
    said = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    return re.search(r"V([0-9.]+)", said)[1]  # type: ignore[index]


def compile_kernels(compiler: str, architectures: Iterable[str] = ARCHITECTURES) -> Resources:
    """Compile every kernel for every architecture with the build's flags."""
    codes = [f"-gencode=arch=compute_{each},code=sm_{each}" for each in architectures]
    resources: Resources = {}
    with tempfile.TemporaryDirectory() as folder:
        for source in KERNELS:
            command = [compiler, "-std=c++17", "-O3", "-Xptxas=-v", "--threads=2", "-fatbin", *codes]
            command += [f"-I{ROOT / 'csrc'}", str(source), "-o", f"{folder}/{source.stem}.fatbin"]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
            for kernel, architecture, needs in parse(done.stderr):
                resources.setdefault(f"{source.stem}: {kernel}", {})[architecture] = needs
    return {name: dict(sorted(found.items(), key=_by_number)) for name, found in sorted(resources.items())}


def float_operations(compiler: str, name: str, folder: Path) -> set[str]:
    """The float instructions in the PTX of a kernel file, e.g. {"add.rn.f32"}."""
    target = folder / "kernel.ptx"
    flags = ["-std=c++17", "-O3", "-arch=sm_90", f"-I{ROOT / 'csrc'}"]
    subprocess.run([compiler, *flags, "-ptx", str(ROOT / "csrc/cuda" / name), "-o", target], check=True)
    arithmetic = r"\b(?:add|sub|mul|fma|mad|div|rcp|sqrt|ex2|lg2)[a-z.]*\.f(?:32|64)"
    return set(re.findall(arithmetic, target.read_text()))


def _by_number(item: tuple[str, object]) -> int:
    return int(item[0].removeprefix("sm_"))


def parse(log: str) -> Iterable[tuple[str, str, dict[str, int]]]:
    """Kernel, architecture and needs of each entry function of ``ptxas -v``."""
    entry = r"Compiling entry function '(\S+)' for '(sm_\d+)'(.*?)(?=Compiling entry function|\Z)"
    for name, architecture, rest in re.findall(entry, log, re.DOTALL):

        def number(pattern: str, text: str = rest) -> int:
            found = re.search(pattern, text)
            return int(found[1]) if found else 0

        needs = {
            "registers": number(r"Used (\d+) registers"),
            "shared_bytes": number(r"(\d+) bytes smem"),
            "stack_bytes": number(r"(\d+) bytes stack frame"),
            "spill_bytes": number(r"(\d+) bytes spill stores") + number(r"(\d+) bytes spill loads"),
        }
        yield _plain(name), architecture, needs


def _plain(mangled: str) -> str:
    """``_ZN..`` as ``head_kernel<Int8, 2>``: demangled, without namespaces and arguments."""
    name = subprocess.run(["c++filt", mangled], capture_output=True, text=True, check=True).stdout.strip()
    name = re.sub(r"\(anonymous namespace\)::|ualm::cuda::|ualm::|^void ", "", name)
    return name.split("(", 1)[0].replace("unsigned int", "uint32").replace("unsigned short", "uint16")


def table(resources: Resources) -> str:
    lines = [
        "| kernel | registers " + " / ".join(ARCHITECTURES) + " | shared bytes | stack, spills |",
        "|---|---|---|---|",
    ]
    for kernel, found in resources.items():
        registers = " / ".join(str(needs["registers"]) for needs in found.values())
        shared = max(needs["shared_bytes"] for needs in found.values())
        waste = max(needs["stack_bytes"] + needs["spill_bytes"] for needs in found.values())
        lines.append(f"| {kernel} | {registers} | {shared} | {waste} |")
    return "\n".join(lines) + "\n"


def recorded() -> tuple[str, Resources]:
    """The compiler's version and the resources last written."""
    record = json.loads(RECORD.read_text())
    return record["nvcc"], record["kernels"]


def table_of_page() -> str:
    return PAGE.read_text().partition(_BEGIN)[2].partition(_END)[0]


def main() -> None:
    compiler = nvcc()
    if compiler is None:
        sys.exit("nvcc was not found; put it on PATH or set CUDA_HOME")
    resources = compile_kernels(compiler)
    RECORD.write_text(json.dumps({"nvcc": version(compiler), "kernels": resources}, indent=1) + "\n")
    before, _, rest = PAGE.read_text().partition(_BEGIN)
    PAGE.write_text(before + _BEGIN + table(resources) + _END + rest.partition(_END)[2])
    print(table(resources), end="")


if __name__ == "__main__":
    main()

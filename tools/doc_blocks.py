"""Runs the code blocks of the README and of the documentation, or of the pages that are named.

Every ```python and ```bash block runs, a page's in order: Python in one namespace, all of them in
one empty folder, without a network. `<!-- blocks: scene llava -->` in a page asks for things to be
in that folder first, see `PREPARED`. `<!-- not run: reason -->` on the line before a block leaves
it out; at most a tenth of all may be. Exit code 1 where a block fails.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RUN = ("python", "bash")
NOT_RUN = ("text", "yaml", "json", "toml", "markdown", "jinja")
MOST_NOT_RUN = 0.1
FENCE = re.compile(
    r"^(?P<indent> *)```(?P<info>[^`\n]*)\n(?P<code>.*?)^(?P=indent)```$", re.M | re.S
)
REASON = re.compile(r"<!-- not run: (?P<reason>[^>]+) -->\n *$")
ASKED = re.compile(r"<!-- blocks: (?P<names>[\w\s-]+) -->")


@dataclass(frozen=True)
class Block:
    language: str
    code: str
    line: int
    reason: str | None  # why it is not run


# -- what pages may ask for ------------------------------------------------------------------------


def scene(folder: Path) -> None:
    """`scene.jpg`, 1,344 pixels a side, with objects that the shipped model knows."""
    from geollava import scenes
    from geollava.scenes.draw import draw

    draw(scenes.plan(80_000, 1344, 1.3)).save(folder / "scene.jpg", quality=95)


def many_scenes(folder: Path) -> None:
    """`scenes/` with three small scenes, and `q.txt` with two questions."""
    from geollava import scenes
    from geollava.scenes.draw import draw

    (folder / "scenes").mkdir()
    for seed in range(3):
        picture = draw(scenes.plan(80_000 + seed, 672, 1.3))
        picture.save(folder / "scenes" / f"{'abc'[seed]}.jpg")
    (folder / "q.txt").write_text("How many ships are there?\nWhat is the land use?\n")


def llava(folder: Path) -> None:
    """`llava-hf/llava-1.5-7b-hf`: a random LLaVA, tiny; and `scene.jpg`."""
    from tests.tokenprune.checkpoint import write_llava

    write_llava(folder / "llava-hf" / "llava-1.5-7b-hf")
    scene(folder)


def vlm(folder: Path) -> dict[str, Any]:
    """`model` and `inputs`: a random LLaVA, tiny, and a question about a picture."""
    from PIL import Image
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from tests.tokenprune.checkpoint import write_llava

    checkpoint = write_llava(folder / ".llava")
    picture = Image.linear_gradient("L").convert("RGB")
    processor = AutoProcessor.from_pretrained(checkpoint)
    inputs = processor(images=picture, text="<image>What is this?", return_tensors="pt")
    return {"model": AutoModelForImageTextToText.from_pretrained(checkpoint), "inputs": inputs}


def geollava_8k(folder: Path) -> None:
    """`initiacms/GeoLLaVA-8K`: the shipped model in the published form; and `scene.jpg`."""
    from geollava.answering.loading import load
    from geollava.model.default_model import default_checkpoint
    from geollava.training.export import save_checkpoint

    loaded = load(default_checkpoint(), device="cpu", dtype="auto")
    save_checkpoint(*loaded, folder / "initiacms" / "GeoLLaVA-8K", "published")
    scene(folder)


PREPARED: dict[str, Callable[[Path], dict[str, Any] | None]] = {  # names for Python, if any
    "geollava-8k": geollava_8k,
    "llava": llava,
    "scene": scene,
    "scenes": many_scenes,
    "vlm": vlm,
}


# -- pages -----------------------------------------------------------------------------------------


def blocks_of(text: str) -> list[Block]:
    """The fenced blocks that are code, runnable or not.

    Raises:
        ValueError: a language that is neither run nor known to be no code.
    """
    found = []
    for match in FENCE.finditer(text):
        language, line = match["info"].strip(), text.count("\n", 0, match.start()) + 1
        if language.startswith("{") or language in NOT_RUN:
            continue
        if language not in RUN:
            allowed = ", ".join((*RUN, *NOT_RUN))
            raise ValueError(f"line {line}: a block is one of {allowed}, got {language!r}")
        reason = REASON.search(text, 0, match.start())
        width = len(match["indent"])
        code = "".join(row[width:] for row in match["code"].splitlines(keepends=True))
        found.append(Block(language, code, line, reason and reason["reason"]))
    return found


def asked_of(text: str) -> list[str]:
    names = [name for match in ASKED.finditer(text) for name in match["names"].split()]
    if unknown := sorted(set(names) - set(PREPARED)):
        raise ValueError(f"blocks ask for {', '.join(unknown)}; there are {', '.join(PREPARED)}")
    return names


def pages() -> list[Path]:
    """The README and every page that is written or has been generated."""
    built = ROOT / "docs" / "_build"
    return [
        ROOT / "README.md",
        *sorted(p for p in (ROOT / "docs").rglob("*.md") if built not in p.parents),
    ]


# -- running ---------------------------------------------------------------------------------------


def run_page(path: Path) -> str | None:
    """Runs a page's blocks in a folder of their own -> what went wrong, if something did."""
    text = path.read_text(encoding="utf-8")
    namespace: dict[str, Any] = {"__name__": "__main__"}
    with tempfile.TemporaryDirectory() as folder:
        for name in dict.fromkeys(asked_of(text)):
            namespace |= PREPARED[name](Path(folder)) or {}
        os.chdir(folder)
        for block in blocks_of(text):
            if block.reason is not None:
                continue
            place = f"{path.relative_to(ROOT)}:{block.line}"
            try:
                if block.language == "python":
                    code = (
                        "\n" * block.line + block.code
                    )  # so that a traceback names the page's line
                    exec(compile(code, str(path), "exec"), namespace)
                else:
                    run_shell(block.code)
            except subprocess.CalledProcessError as error:
                return f"{place}: exit {error.returncode}\n{block.code}{error.stderr}"
            except BaseException:
                return f"{place}:\n{traceback.format_exc()}"
        os.chdir(ROOT)
    return None


def run_shell(code: str) -> None:
    scripts = str(Path(sys.executable).parent)
    paths = {"PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    subprocess.run(
        ["bash", "-euo", "pipefail", "-c", code],
        env=os.environ | paths,
        check=True,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )


def checked(path: Path) -> tuple[Path, float, str | None]:
    """A page, the seconds it took, and what went wrong."""
    start = time.monotonic()
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):  # it is for readers
        problem = run_page(path)
    return path, time.monotonic() - start, problem


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pages", nargs="*", type=Path, help="all pages if none is named")
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    chosen = [path.resolve() for path in options.pages] or pages()

    found = {path: blocks_of(path.read_text(encoding="utf-8")) for path in chosen}
    everything = [block for blocks in found.values() for block in blocks]
    left_out = [(path, block) for path, blocks in found.items() for block in blocks if block.reason]
    for path, block in left_out:
        print(f"not run: {path.relative_to(ROOT)}:{block.line}: {block.reason}")

    os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    os.environ["PYTHONPATH"] = str(ROOT)
    # Started once with what takes seconds to import; every page gets a fresh copy of that.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "transformers", "geollava.answering.session"])
    failures = 0
    runnable = [path for path in chosen if any(block.reason is None for block in found[path])]
    with context.Pool(options.jobs, maxtasksperchild=1) as pool:
        for path, took, problem in pool.imap_unordered(checked, runnable):
            print(
                f"{'FAILED' if problem else 'ok':6}  {took:5.1f} s  {path.relative_to(ROOT)}",
                flush=True,
            )
            if problem:
                failures += 1
                print(problem, flush=True)
    share = len(left_out) / max(len(everything), 1)
    print(f"{len(everything)} blocks of {len(chosen)} pages, {len(left_out)} not run ({share:.0%})")
    if not options.pages and share > MOST_NOT_RUN:
        sys.exit(f"at most {MOST_NOT_RUN:.0%} of all blocks may be left out")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()

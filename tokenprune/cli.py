"""The command `tokenprune`: what methods and hosts there are, that they are exact, what they save.

Exit codes: 0; 1 for a model that is not verified; 2 for wrong usage or input; 130 when interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, NoReturn

import torch

import tokenprune
from tokenprune.namesake import refuse_namesake

refuse_namesake()  # here too: where the other package's files have won, ours say nothing else

# ruff: noqa: E402
from tokenprune import hub
from tokenprune.budget import Budget
from tokenprune.hosts.profile import FEWEST_REPEATS, KEEP_RATIOS, METHODS, cases_of
from tokenprune.method import (
    Method,
    get_method,
    list_methods,
    method_class,
    required_options,
)
from tokenprune.ops.common.checks import check_int
from tokenprune.version import __version__

HEADINGS = (
    "method", "what it does", "needs", "query-agnostic", "merges", "faithful", "paper",
    "departs from it in",
)  # fmt: skip
HOST_HEADINGS = (
    "model type", "supported", "adapter", "positions", "video", "hands over", "reason",
)  # fmt: skip
DTYPES = ("float64", "float32", "bfloat16", "float16")
APPROXIMATION = " (approximation)"  # beside the name of a method that is not quite its paper's


def method_rows() -> list[tuple[str, ...]]:
    """A row under `HEADINGS` for each method, from what its class declares."""
    return [_row(name, method_class(name)) for name in list_methods()]


def _row(name: str, method: type[Method]) -> tuple[str, ...]:
    summary = (method.__doc__ or "").strip().splitlines()[0].rstrip(".")
    spelled = {"cls": "class token", "layers": "the language model's layers"}
    needs = [spelled.get(field, field) for field in method.needs]
    if required_options(method):
        needs.append("the model's weights")
    return (
        name + (APPROXIMATION if is_approximation(method) else ""),
        summary[:1].lower() + summary[1:],
        ", ".join(needs) or "-",
        "yes" if method.query_agnostic else "no",
        "yes" if method.merges else "-",
        faithful_of(method),
        method.paper or "-",
        method.approximates or "-",
    )


def faithful_of(method: type[Method]) -> str:
    """What is declared of a method's defaults, and of `official=True` where that is another form.

    "variant; official=True: faithful to OWNER/REPOSITORY@COMMIT", or "-" where nothing is said.
    """
    declared = method.faithful or "-"
    if "official" not in {option.name for option in fields(method)}:
        return declared
    options: dict[str, Any] = {"official": True}
    official = method(**options).faithful
    return declared if official in (declared, None) else f"{declared}; official=True: {official}"


def is_approximation(method: type[Method]) -> bool:
    """Whether a method departs from its paper by more than what its options say, as the budget."""
    return bool(method.approximates) and not (method.faithful or "").startswith("faithful")


def markdown_table() -> str:
    """The methods as a table in Markdown, papers linked."""
    lines = [HEADINGS, ("---",) * len(HEADINGS)]
    for shown, *rest, paper, departs in method_rows():
        name = shown.removesuffix(APPROXIMATION)
        link = paper if paper == "-" else f"[{paper}](https://arxiv.org/abs/{paper})"
        lines.append((f"`{name}`{shown[len(name) :]}", *rest, link, departs))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def text_table() -> str:
    """The methods in columns."""
    return in_columns([HEADINGS, *method_rows()])


def in_columns(table: list[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    padded = [
        "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        for cells in table
    ]
    return "\n".join(line.rstrip() for line in padded)


def host_rows() -> list[tuple[str, ...]]:
    """A row under `HOST_HEADINGS` for each type of models that the installed transformers has."""
    return [
        (
            host.model_type,
            "yes" if host.supported else "no",
            host.adapter or "-",
            host.positions or "-",
            "yes" if host.video else "-",
            ", ".join(host.offers) or "-",
            host.reason or "-",
        )
        for host in tokenprune.list_hosts()
    ]


def hosts(options: argparse.Namespace) -> int:
    """`tokenprune hosts`: prints every type of models, and whether it is shown to work."""
    libraries()  # says which extra it needs
    if options.json:
        print(json.dumps([asdict(host) for host in tokenprune.list_hosts()], indent=2))
    elif options.markdown:
        rows = [(f"`{name}`", *rest) for name, *rest in host_rows()]
        lines = [HOST_HEADINGS, ("---",) * len(HOST_HEADINGS), *rows]
        print("\n".join(f"| {' | '.join(cells)} |" for cells in lines))
    else:
        print(in_columns([HOST_HEADINGS, *host_rows()]))
    return 0


def verify(options: argparse.Namespace) -> int:
    """`tokenprune verify`: prints the report; 0 where everything held, else 1."""
    get_method(options.method)  # what is wrong is said before a model is loaded
    Budget(None, options.keep_ratio)
    check_int("new_tokens", options.new_tokens, low=1)
    picture = opened(options.image)
    model, inputs = load(options.model, picture, options.question, options.dtype)
    report = tokenprune.verify(
        model,
        inputs,
        method=options.method,
        keep_ratio=options.keep_ratio,
        new_tokens=options.new_tokens,
    )
    print(json.dumps(report.as_dict(), indent=2) if options.json else report)
    return 0 if report.ok else 1


def profile(options: argparse.Namespace) -> int:
    """`tokenprune profile`: prints the report."""
    methods, keep_ratios = options.method or METHODS, options.keep_ratio or KEEP_RATIOS
    list(cases_of(methods, keep_ratios))  # what is wrong is said before a model is loaded
    check_int("new_tokens", options.new_tokens, low=2)
    check_int("repeats", options.repeats, low=FEWEST_REPEATS)
    picture = noise() if options.image is None else opened(options.image)
    model, inputs = load(options.model, picture, options.question, options.dtype)
    report = tokenprune.profile(
        model,
        inputs,
        methods=methods,
        keep_ratios=keep_ratios,
        new_tokens=options.new_tokens,
        repeats=options.repeats,
    )
    size = " x ".join(map(str, picture.size))
    image = f"noise of {size} px" if options.image is None else f"{options.image}, {size} px"
    if options.json:
        print(json.dumps({"image": image, **report.as_dict()}, indent=2))
    else:
        print(f"{report}\nimage: {image}")
    return 0


def libraries() -> tuple[Any, Any]:
    """transformers, and Pillow's Image; raises ImportError, which names the extra."""
    try:
        import transformers
        from PIL import Image
    except ImportError as error:
        raise ImportError(
            "this command needs the extra hf: pip install 'tokenprune-vlm[hf]' "
            "(in a checkout: pip install '.[hf]')"
        ) from error
    return transformers, Image


def opened(image: Path) -> Any:
    """The picture in a file."""
    _, pillow = libraries()
    try:
        with pillow.open(image) as file:
            return file.convert("RGB")
    except Exception as error:  # Pillow raises what it likes on damaged files
        raise ValueError(f"{image} must be an image: {error}") from error


def noise(side: int = 672) -> Any:
    """A picture of noise, the same each time."""
    _, pillow = libraries()
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (side, side, 3), dtype=torch.uint8, generator=generator)
    return pillow.fromarray(pixels.numpy())


def load(name: str, picture: Any, question: str, dtype: str) -> tuple[Any, Any]:
    """A model of transformers in eval mode, and a question about a picture as its processor asks.

    `dtype` is torch's name of one, or "auto": the checkpoint's own.
    """
    transformers, _ = libraries()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    safely: dict[str, Any] = {"trust_remote_code": False}
    with hub.loading(name):
        hub.refuse_adapter(name)
        processor = transformers.AutoProcessor.from_pretrained(name, **safely)
        model = transformers.AutoModelForImageTextToText.from_pretrained(
            name, dtype=getattr(torch, dtype, dtype), use_safetensors=True, **safely
        )
    if torch.cuda.is_available():
        model = model.cuda()
    if getattr(processor, "chat_template", None):
        content = [{"type": "image", "image": picture}, {"type": "text", "text": question}]
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
    else:
        text = getattr(processor, "image_token", "") + question
        inputs = processor(images=picture, text=text, return_tensors="pt")
    return model.eval(), inputs.to(model.device, model.dtype)


def add_profile(commands: Any) -> None:
    timing = commands.add_parser(
        "profile", help="time on a model of your own what a reduction costs and saves"
    )
    timing.add_argument("model", help="a folder or hub name, a vision-language model")
    timing.add_argument("image", type=Path, nargs="?", help="a picture of noise by default")
    timing.add_argument("--question", default="What is in this image?")
    # Without defaults: what is given would be added to them.
    timing.add_argument(
        "--method",
        nargs="+",
        action="extend",
        metavar="NAME",
        help=f"names that `methods` lists; {' and '.join(METHODS)} where none is given",
    )
    timing.add_argument(
        "--keep-ratio",
        nargs="+",
        action="extend",
        type=float,
        metavar="R",
        help=f"shares to keep; {' and '.join(map(str, KEEP_RATIOS))} where none is given",
    )
    timing.add_argument("--new-tokens", type=int, default=16, help="tokens of every run")
    timing.add_argument("--repeats", type=int, default=5, help="timed runs of each")
    timing.add_argument(
        "--dtype", default="auto", choices=("auto", *DTYPES), help="auto: the checkpoint's own"
    )
    timing.add_argument("--json", action="store_true", help="print one JSON object")


def add_serve(commands: Any) -> None:
    serving = commands.add_parser(
        "serve",
        help="start vLLM's server with fewer visual tokens; further arguments are vLLM's",
        allow_abbrev=False,
    )
    serving.add_argument("model", help="a folder or hub name, a vision-language model")
    serving.add_argument("--method", default="divprune", help="a name that `methods` lists")
    serving.add_argument(
        "--options", type=json.loads, default={}, metavar="JSON", help="of the method"
    )
    budget = serving.add_mutually_exclusive_group(required=True)
    budget.add_argument("--keep-ratio", type=float, help="share of an image's tokens, in (0, 1]")
    budget.add_argument("--num-keep", type=int, help="tokens of an image")


def serve(options: argparse.Namespace, rest: list[str]) -> NoReturn:
    """`tokenprune serve`: becomes vLLM's server."""
    from tokenprune.serving.vllm.launch import serve as become_server

    given = {"method": options.method, "options": options.options}
    for name in ("num_keep", "keep_ratio"):
        if getattr(options, name) is not None:
            given[name] = getattr(options, name)
    become_server(options.model, given, rest)


def make_parser() -> argparse.ArgumentParser:
    """All commands and options; `shtab` makes a shell's completion from it."""
    parser = argparse.ArgumentParser(prog="tokenprune", description="Fewer visual tokens.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(required=True, metavar="command", dest="command")
    methods = commands.add_parser("methods", help="the methods, and what each declares")
    methods.add_argument("--markdown", action="store_true", help="as a table in Markdown")
    known = commands.add_parser(
        "hosts", help="the models of the installed transformers, and which are shown to work"
    )
    shape = known.add_mutually_exclusive_group()
    shape.add_argument("--markdown", action="store_true", help="as a table in Markdown")
    shape.add_argument("--json", action="store_true", help="print one JSON array")
    proof = commands.add_parser(
        "verify", help="show on a model of your own that a reduction is exact"
    )
    proof.add_argument("model", help="a folder or hub name, a vision-language model")
    proof.add_argument("image", type=Path)
    proof.add_argument("question")
    proof.add_argument("--method", default="divprune", help="a name that `methods` lists")
    proof.add_argument("--keep-ratio", type=float, default=0.5, help="share to keep, in (0, 1]")
    proof.add_argument("--new-tokens", type=int, default=4, help="tokens to generate")
    proof.add_argument(
        "--dtype", default="float32", choices=DTYPES, help="coarse ones hardly show positions"
    )
    proof.add_argument("--json", action="store_true", help="print one JSON object")
    add_profile(commands)
    add_serve(commands)
    return parser


def main(arguments: list[str] | None = None) -> None:
    parser = make_parser()
    options, rest = parser.parse_known_args(arguments)
    if rest and options.command != "serve":
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    hub.ask_for_files_alone()
    code = 0
    try:
        if options.command == "methods":
            print(markdown_table() if options.markdown else text_table())
        elif options.command == "serve":
            serve(options, rest)
        else:
            code = {"hosts": hosts, "verify": verify, "profile": profile}[options.command](options)
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever reads has read enough. Python would complain when it flushes at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        code = 130
    except Exception as error:  # 1 would say that the model is not verified
        lines = str(error).strip().splitlines() or [type(error).__name__]
        print(f"error: {lines[0]}", file=sys.stderr)
        code = 2
    if code or options.command not in ("methods", "hosts"):
        sys.exit(code)


if __name__ == "__main__":
    main()

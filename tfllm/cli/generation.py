"""`tfllm generate` and `tfllm chat`; and what `tfllm export` does with a decoder."""

import json
import sys
from argparse import ArgumentParser
from pathlib import Path

from tfllm.core.console import note
from tfllm.core.errors import UserError
from tfllm.core.quiet import load_tensorflow

NUMBERS = {
    "temperature": (float, "0 takes the likeliest token each time"),
    "top_k": (int, "draw among so many of the likeliest tokens; 0 for all"),
    "top_p": (float, "draw among the likeliest that have this share together"),
    "min_p": (float, "draw among those with this part of the best one's share"),
    "repetition_penalty": (float, "over 1: what stood before is less likely"),
    "frequency_penalty": (float, "off a logit for each time it is in the answer"),
    "max_new_tokens": (int, "longest answer in tokens"),
    "seed": (int, "the same seed gives the same text"),
}
HELP = "/reset forgets, /system TEXT sets the role, /save FILE, /exit"


def add_settings(parser: ArgumentParser, **defaults) -> None:
    """Adds the flags by which text is generated."""
    for name, (kind, about) in NUMBERS.items():
        value = defaults.get(name)
        about += "" if value is None else f" (default {value:g})"
        parser.add_argument(f"--{name}", type=kind, default=value, help=about)
    parser.add_argument("--stop", nargs="+", default=[], help="strings that end it")
    parser.add_argument("--xla", action="store_true", help="compile the loop")
    parser.add_argument("--draft", help="smaller model that guesses: same text, faster")


def settings_of(options) -> dict:
    """What `Generator.generate` takes of them."""
    values = {name: getattr(options, name) for name in NUMBERS}
    if options.draft:
        values["draft"], _ = open_generator(options.draft, options.xla)
    return {k: v for k, v in values.items() if v is not None} | {"stop": options.stop}


def open_generator(name: str, xla: bool = False):
    """A generator by the name of a run, directory, file or preset.

    Returns:
        The `Generator`, and its own `ChatTemplate` or None.
    """
    load_tensorflow()
    from tfllm.generation.generator import Generator
    from tfllm.text.chat import ChatTemplate

    if (Path(name) / "config.yaml").exists():
        from tfllm.tasks.runs import load_run

        run = load_run(name)
        if hasattr(run.task, "encoder_decoder"):
            return run.task.translator(run.model), None
        if not hasattr(run.task, "decoder"):
            raise UserError(f"a {run.task.name} run does not generate text", name)
        tokenizer, source = run.task.tokenizer, run.path / "tokenizer"
        generator = Generator(run.model, run.task.decoder, tokenizer, xla=xla)
    else:
        generator = Generator.load(name, xla=xla)
        tokenizer, source = generator.tokenizer, generator.source
    return generator, ChatTemplate.find(source, tokenizer)


def generate_command(parser: ArgumentParser, argv: list[str]) -> int:
    """Prints what a model makes of texts, and nothing else."""
    parser.add_argument("model", help="run, directory, file or preset")
    parser.add_argument("text", nargs="+", help='texts to go on with; "" for none')
    add_settings(parser, temperature=0.0, max_new_tokens=256)
    parser.add_argument("--beams", type=int, default=1, help="over 1: beam search")
    parser.add_argument("--length_penalty", type=float, default=1.0)
    parser.add_argument("--chat", action="store_true", help="texts are a user's turns")
    parser.add_argument("--system", help="what the system says first, with --chat")
    parser.add_argument(
        "--truncate", action="store_true", help="cut the beginning of long texts off"
    )
    parser.add_argument("--code", action="store_true", help="stop behind a function")
    options = parser.parse_args(argv)
    generator, template = open_generator(options.model, options.xla)
    settings, texts = (
        settings_of(options) | {"truncate": options.truncate},
        options.text,
    )
    if options.code:
        from tfllm.evaluation.code import STOPS

        settings["stop"] = [*settings["stop"], *STOPS]
    if options.chat:
        template = template or _chatml(generator.tokenizer)
        first = _system(options.system)
        turns = [[*first, {"role": "user", "content": text}] for text in texts]
        texts = [template.render(turn) for turn in turns]
        settings["parse_special"] = True
    if len(texts) == 1 and options.beams == 1:
        for piece in generator.stream(texts[0], **settings):
            print(piece, end="", flush=True)
        print()
        return 0
    settings |= {"beams": options.beams, "length_penalty": options.length_penalty}
    for answer in generator.generate(texts, **settings):
        print(answer.text)
    return 0


def chat_command(parser: ArgumentParser, argv: list[str]) -> int:
    """A dialogue in the terminal."""
    parser.add_argument("model", help="run, directory, file or preset")
    add_settings(parser, temperature=0.7, top_p=0.9, max_new_tokens=512, seed=0)
    parser.add_argument("--system", help="what the system says first")
    options = parser.parse_args(argv)
    generator, template = open_generator(options.model, options.xla)
    template = template or _chatml(generator.tokenizer)
    settings, person = settings_of(options), sys.stdin.isatty()
    system, turns = _system(options.system), []
    if person:
        note(f"{options.model}: {HELP}")
    while True:
        try:
            line = input("> " if person else "").strip()
        except EOFError:
            return 0
        command, _, rest = line.partition(" ")
        if command in ("/exit", "/quit"):
            return 0
        if command in ("/reset", "/system"):
            system = _system(rest) if command == "/system" else system
            turns = []
            note("a new conversation")
        elif command == "/save":
            path = Path(rest or "conversation.json")
            text = json.dumps(
                {"messages": system + turns}, ensure_ascii=False, indent=1
            )
            path.write_text(text + "\n", encoding="utf-8")
            note(f"saved: {path}")
        elif command.startswith("/"):
            note(HELP)
        elif line:
            turns.append({"role": "user", "content": line})
            _answer(generator, template, system, turns, settings)
            settings["seed"] += 1


def _answer(generator, template, system, turns, settings) -> None:
    """Streams an answer and keeps it; the oldest turns go when they do not fit."""
    room = generator.config.max_length - min(
        settings["max_new_tokens"], generator.config.max_length // 2
    )
    while True:
        prompt = template.render(system + turns)
        (ids,) = generator.tokenizer.encode([prompt], parse_special=True)
        if len(ids) <= room or len(turns) == 1:
            break
        del turns[:2]
        note("the conversation is too long: its first turns are forgotten")
    said = ""
    try:
        options = settings | {"parse_special": True, "truncate": True}
        for piece in generator.stream(prompt, **options):
            print(piece, end="", flush=True)
            said += piece
    except KeyboardInterrupt:  # stops the answer, not the conversation
        pass
    print()
    turns.append({"role": "assistant", "content": said})


def export_decoder(options) -> int:
    """`tfllm export` of a directory, file or preset, or of a run that generates."""
    generator, template = open_generator(options.run, options.xla)
    from tfllm.serving.decoder_export import export_generator

    path = export_generator(
        generator,
        options.name or Path(options.run).resolve().stem,
        options.directory,
        chat=None if options.plain else template,
        about={"model": options.run},
    )
    note(str(path))
    return 0


def _chatml(tokenizer):
    from tfllm.text.chat import CHATML, ChatTemplate

    return ChatTemplate(CHATML, tokenizer)


def _system(text: str | None) -> list[dict]:
    return [{"role": "system", "content": text}] if text else []

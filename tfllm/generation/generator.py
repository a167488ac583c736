"""`Generator`: text from a decoder, for Python."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from tfllm.core.errors import UserError
from tfllm.generation.text_stream import TextStream
from tfllm.models.decoder import DecoderConfig
from tfllm.text import Tokenizer

# Special tokens by which well-known models end an answer, beside their end token.
ENDS = {"</s>", "<|endoftext|>", "<|im_end|>", "<|end_of_text|>", "<|eot_id|>"}
ENDS |= {"<end_of_turn>"}
STRIDE = 16  # tokens between two looks for stop strings
# Per-row settings: what is off, and the numbers allowed.
OFF = {
    "temperature": (0.0, 0.0, np.inf),
    "top_k": (0, 0, np.inf),
    "top_p": (1.0, 0.0, 1.0),
    "min_p": (0.0, 0.0, 1.0),
    "repetition_penalty": (1.0, 1e-6, np.inf),
    "frequency_penalty": (0.0, -np.inf, np.inf),
}
TYPES = {"top_k": "int32", "max_new_tokens": "int32", "seed": "int64"}


@dataclass
class Generation:
    """An answer.

    Attributes:
        text: Its text, without the prompt.
        token_ids: Its tokens, the one that ended it included.
        finish_reason: `stop` (the model ended it), `stop_string` or `length`.
        prompt_tokens: Length of the prompt that was read.
        truncated: Tokens that were cut off the prompt's beginning.
        log_probabilities: Of each token, if asked for; before temperature and filters,
            after penalties and bans.
        score: Of beam search: log-probability over `length ** length_penalty`.
    """

    text: str
    token_ids: list[int]
    finish_reason: str
    prompt_tokens: int
    truncated: int = 0
    log_probabilities: list[float] | None = None
    score: float | None = None


@dataclass
class Score:
    """How likely a text is.

    Attributes:
        log_probability: Sum over its tokens, in nats.
        tokens: How many were scored: all, or all but the first where the tokenizer puts
            no token before a text.
        log_probabilities: Of each.
    """

    log_probability: float
    tokens: int
    log_probabilities: list[float] = field(repr=False, default_factory=list)


class Generator:
    """Generates and scores texts with a decoder.

    It keeps its own copy of the weights, laid out for decoding.

    Args:
        model: What `decoder(config)` built.
        config: Its shape.
        tokenizer: Its tokenizer.
        xla: Compiles the loop with XLA: faster, but the first call with a new bucket of
            sizes takes seconds.
        stop_tokens: Ids that end an answer; None for the tokenizer's end token and
            those of well-known chat formats.

    Example:
        >>> generator = Generator.load("smollm2-135m-instruct")
        >>> generator.generate(["The capital of France is"])[0].text
    """

    def __init__(
        self,
        model,
        config: DecoderConfig,
        tokenizer: Tokenizer,
        *,
        xla: bool = False,
        stop_tokens: Sequence[int] | None = None,
    ):
        from tfllm.generation.engine_tf import Engine

        if tokenizer.vocabulary_size > config.vocabulary_size:
            raise UserError(
                f"the tokenizer has {tokenizer.vocabulary_size} tokens, the model "
                f"{config.vocabulary_size}"
            )
        self.config, self.tokenizer, self.source = config, tokenizer, None
        if stop_tokens is None:
            ends = {tokenizer.ids.get(token) for token in ENDS} & tokenizer.special_ids
            stop_tokens = ends | {tokenizer.eos_id}
        self.stop_tokens = sorted(i for i in stop_tokens if i is not None)
        self.engine, self._drafted = Engine(self._network(model, xla), xla), None
        self.prefix = tokenizer.prefix

    def _network(self, model, xla: bool):
        from tfllm.generation.network_tf import Network

        return Network(self.config, model, xla)

    @classmethod
    def load(cls, name, **options) -> "Generator":
        """Opens a checkpoint: a directory, file, preset or name of the hub.

        Args:
            name: See `models.pretrained.open_checkpoint`.
            **options: See the class.
        """
        from tfllm.models.pretrained import open_checkpoint

        checkpoint = open_checkpoint(name)
        if not isinstance(checkpoint.config, DecoderConfig):
            raise UserError("this is no decoder: it cannot generate text", name)
        model = checkpoint.build("float32")
        made = cls(model, checkpoint.config, checkpoint.tokenizer(), **options)
        made.source = checkpoint.source
        return made

    def refresh(self, model) -> None:
        """Takes the weights of a model of the same shape anew."""
        self.engine.network.refresh(model)

    def generate(
        self,
        texts: Sequence[str],
        *,
        max_new_tokens=128,
        temperature=0.0,
        top_k=0,
        top_p=1.0,
        min_p=0.0,
        repetition_penalty=1.0,
        frequency_penalty=0.0,
        seed=0,
        stop: Sequence[str] = (),
        banned_tokens: Sequence[int] = (),
        forced_tokens: Sequence[int] = (),
        beams: int = 1,
        length_penalty: float = 1.0,
        log_probabilities: bool = False,
        truncate: bool = False,
        parse_special: bool = False,
        draft: "Generator | None" = None,
        draft_tokens: int = 4,
    ) -> list[Generation]:
        """Goes on with texts.

        Numbers may be lists with one for each text. An answer does not depend on what
        else is in the batch.

        Args:
            texts: Prompts; an empty one starts where texts start.
            max_new_tokens: Most tokens of an answer.
            temperature: 0 takes the likeliest token, else logits are divided by it.
            top_k: Draws among so many of the likeliest; 0 for all.
            top_p: Draws among the fewest likeliest that have this share (Holtzman et
                al., 2019).
            min_p: Draws among tokens with at least this part of the best one's share.
            repetition_penalty: Over 1 makes tokens of prompt and answer less likely.
            frequency_penalty: Taken off a logit for each time it is in the answer.
            seed: The same seed gives the same answer.
            stop: Strings that end an answer; they are not part of it.
            banned_tokens: Ids never to be made; or a list of such lists, one a text.
            forced_tokens: Ids with which an answer begins; or a list of such lists.
            beams: Over 1 for beam search with so many beams, which draws nothing.
            length_penalty: See `beam_tf.Beams`.
            log_probabilities: Whether to return them.
            truncate: A prompt that is too long loses its beginning, not the call.
            parse_special: Whether special tokens written in a text are such. Only for
                prompts that you rendered.
            draft: A smaller model with the same tokenizer that guesses tokens ahead:
                answers are the same and come faster (see `draft_tf`).
            draft_tokens: How many it guesses at a time.

        Raises:
            UserError: A prompt is longer than the model reads, a setting is out of
                range, or the draft has another vocabulary.
        """
        settings = {k: v for k, v in locals().items() if k in OFF or k in TYPES}
        lists = {"banned": banned_tokens, "forced": forced_tokens}
        engine = self._engine(draft, draft_tokens)
        job = self._job(engine, texts, settings, lists, truncate, parse_special)
        stop = [stop] if isinstance(stop, str) else stop
        if beams > 1 and (log_probabilities or stop or len(forced_tokens) or draft):
            raise UserError(
                "beam search knows no stop strings, forced tokens, log-probabilities "
                "or drafts"
            )
        streams = [TextStream(self.tokenizer, ids, stop) for ids in job.prompts]
        if not streams:
            return []
        if beams > 1:
            return self._beam_search(job, streams, beams, length_penalty)
        cuts, pieces = {}, ["" for _ in streams]
        stride = STRIDE if stop else job.space
        for rows, scores in self._rounds(job, stride, log_probabilities):  # noqa: B007
            for i, (row, stream) in enumerate(zip(rows, streams, strict=True)):
                over = self._over(job, i, row)
                pieces[i] += stream.push(row[job.given[i] :], over)
                job.given[i] = len(row)
                if stream.stopped and i not in cuts:
                    cuts[i] = self._cut(job.prompts[i], row, stop)
            if all(
                s.stopped or self._over(job, i, rows[i]) for i, s in enumerate(streams)
            ):
                break
        answers = []
        for i, row in enumerate(rows):
            row = row[: cuts.get(i)]
            answer = Generation(
                text=pieces[i],
                token_ids=row,
                finish_reason="stop_string" if i in cuts else self._reason(row),
                prompt_tokens=len(job.prompts[i]),
                truncated=job.truncated[i],
            )
            if log_probabilities:
                answer.log_probabilities = scores[i][: len(row)]
            answers.append(answer)
        return answers

    def stream(
        self, text: str, *, stop: Sequence[str] = (), every: int = 1, **settings
    ):
        """Yields an answer's text as it is made, whole characters only.

        Args:
            text: The prompt.
            stop: See `generate`.
            every: Tokens between two looks at what was made.
            **settings: Those of `generate`, without beam search.
        """
        lists = {k: settings.pop(f"{k}_tokens", ()) for k in ("banned", "forced")}
        flags = [settings.pop(name, False) for name in ("truncate", "parse_special")]
        engine = self._engine(
            settings.pop("draft", None), settings.pop("draft_tokens", 4)
        )
        if unknown := [name for name in settings if name not in (*OFF, *TYPES)]:
            raise UserError(f"there is no setting '{unknown[0]}' for streaming")
        settings = {"max_new_tokens": 128, "seed": 0} | settings
        job = self._job(engine, [text], settings, lists, *flags)
        stop = [stop] if isinstance(stop, str) else stop
        return self._pieces(
            job, TextStream(self.tokenizer, job.prompts[0], stop), every
        )

    def _pieces(self, job: "_Job", stream: TextStream, every: int) -> Iterator[str]:
        for (row,), _ in self._rounds(job, every):
            piece = stream.push(row[job.given[0] :], self._over(job, 0, row))
            job.given[0] = len(row)
            if piece:
                yield piece
            if stream.stopped:
                return

    def score(self, texts: Sequence[str], truncate: bool = False) -> list[Score]:
        """How likely texts are; what stands before the first token is not scored.

        Args:
            texts: Strings.
            truncate: A text that is too long loses its beginning.
        """
        job = self._job(self.engine, texts, {"max_new_tokens": 0}, {}, truncate)
        return self._scores(job) if texts else []

    def _scores(self, job: "_Job") -> list[Score]:
        state = self.engine.start(job.tokens, 0, scored=True, source=job.source)
        scores, answers = state.scores.numpy().T, []
        for i, ids in enumerate(job.prompts):
            # No token stands before the first one; an empty text has none of its own.
            row = scores[i, job.slots - len(ids) + 1 : job.slots]
            answers.append(
                Score(float(row.sum(dtype="float64")), len(row), row.tolist())
            )
        return answers

    # -- one call ---------------------------------------------------------------------

    def _engine(self, draft: "Generator | None", reach: int):
        """What runs the loop, with a draft or without."""
        if draft is None:
            return self.engine
        from tfllm.generation.draft_tf import Drafted
        from tfllm.generation.engine_tf import Engine

        network, guessing = self.engine.network, draft.engine.network
        if reach < 2:
            raise UserError(f"draft_tokens is 2 or more, not {reach}")
        if (
            draft.tokenizer.tokens != self.tokenizer.tokens
            or guessing.vocabulary_size != network.vocabulary_size
        ):
            raise UserError("the draft has another vocabulary", draft.source)
        if draft.engine.xla != self.engine.xla:
            raise UserError("model and draft are both made for XLA, or neither is")
        made = self._drafted and self._drafted.network
        if not made or made.draft is not guessing or made.reach != reach:
            self._drafted = Engine(Drafted(network, guessing, reach), self.engine.xla)
        return self._drafted

    def _job(
        self, engine, texts, settings, lists, truncate, parse_special=False
    ) -> "_Job":
        if isinstance(texts, str):
            raise TypeError("generate takes a list of texts, not a single one")
        columns = {
            name: _column(name, value, len(texts)) for name, value in settings.items()
        }
        limits = columns["max_new_tokens"]
        prompts, truncated, source = self._prompts(
            texts, limits, truncate, parse_special
        )
        names = {
            name
            for name in OFF
            if np.any(columns.get(name, OFF[name][0]) != OFF[name][0])
        } | {"max_new_tokens"}
        if "temperature" in names:
            names.add("seed")
        else:
            names -= {"top_k", "top_p", "min_p"}
        longest, space = max(map(len, prompts), default=1), max(limits, default=0)
        count, slots, space = engine.rounded(len(texts) or 1, longest, int(space))
        tokens = aligned(prompts, count, slots)
        # Rows that only fill a bucket have zeros: no token is made.
        fill = (0, count - len(texts))
        values = {name: np.pad(columns[name], fill) for name in names}
        for name, ids in lists.items():
            if len(ids):
                values[name] = self._ids(name, ids, len(texts), count)
        given = [0] * len(texts)
        return _Job(
            *(engine, prompts, truncated, limits, tokens, slots, space, values, given),
            source,
        )

    def _prompts(self, texts, limits, truncate, parse_special) -> tuple:
        """Ids of each prompt, how many were cut off, and what is read before them.

        Lowers `limits` to what the model has room for.
        """
        rows = self.tokenizer.encode(texts, parse_special=parse_special)
        prompts, truncated = [], []
        for i, row in enumerate(rows):
            row = self.prefix + row or [self.first_token]
            room = self.config.max_length
            if len(row) > room - (limits[i] > 0):
                if not truncate:
                    raise UserError(
                        f"a prompt has {len(row)} tokens, the model reads {room}, the "
                        "answer included",
                        f"text {i + 1}",
                        "Shorten it, or ask for its beginning to be cut off",
                    )
                room = max(room - limits[i], room // 2, len(self.prefix) + 1)
                over = len(row) - room
                row = self.prefix + row[len(self.prefix) + over :]
                truncated.append(over)
            else:
                truncated.append(0)
            limits[i] = min(limits[i], self.config.max_length - len(row))
            prompts.append(row)
        return prompts, truncated, ()

    @property
    def first_token(self) -> int:
        """What an empty prompt is, where nothing stands before a text."""
        tokenizer = self.tokenizer
        roles = (tokenizer.bos_id, tokenizer.eos_id, tokenizer.cls_id, tokenizer.pad_id)
        return next((i for i in roles if i is not None), 0)

    def _ids(self, name, ids, texts: int, count: int) -> np.ndarray:
        lists = ids if isinstance(ids[0], list | tuple) else [list(ids)] * texts
        flat = [token for row in lists for token in row]
        if len(lists) != texts or any(
            not 0 <= i < self.config.vocabulary_size for i in flat
        ):
            raise UserError(f"{name}_tokens are ids, or a list of ids for each text")
        array = np.full((count, max(map(len, lists), default=0)), -1, "int32")
        for i, row in enumerate(lists):
            array[i, : len(row)] = row
        return array

    def _rounds(self, job: "_Job", stride: int, scored: bool = False):
        """Yields all tokens (and scores) so far, at least once, until all is made."""
        ends, rows = self.stop_tokens or [-2], len(job.prompts)
        state = job.engine.start(job.tokens, job.space, source=job.source)
        done = False
        while not done:
            state = job.engine.advance(state, job.values, ends, stride, scored)
            made = state.history.numpy()[job.slots :, :rows].T
            scores = state.scores.numpy()[job.slots :, :rows].T.tolist()
            done = bool(state.done.numpy().all())
            yield [row[row >= 0].tolist() for row in made], scores

    def _beam_search(self, job, streams, width: int, penalty: float):
        from tfllm.generation.beam_tf import Beams

        beams = Beams(width, penalty)
        state = self.engine.start(job.tokens, job.space, beams=beams, source=job.source)
        ends = self.stop_tokens or [-2]
        state = self.engine.advance(state, job.values, ends, job.space, beams=beams)
        _, scores, tokens = (x.numpy() for x in state.beams)
        answers = []
        for i, stream in enumerate(streams):
            row = tokens[job.slots :, i, 0]
            row = row[row >= 0].tolist()
            text, prompt = stream.push(row, last=True), len(job.prompts[i])
            answer = Generation(text, row, self._reason(row), prompt, job.truncated[i])
            answer.score = float(scores[i, 0])
            answers.append(answer)
        return answers

    def _reason(self, row: list[int]) -> str:
        return "stop" if row and row[-1] in self.stop_tokens else "length"

    def _over(self, job: "_Job", i: int, row: list[int]) -> bool:
        """Whether the model itself ended a row."""
        return self._reason(row) == "stop" or len(row) >= job.limits[i]

    def _cut(self, prompt: list[int], row: list[int], stop) -> int:
        """How many tokens it took to make a stop string."""
        stream = TextStream(self.tokenizer, prompt, stop)
        for count, token in enumerate(row, 1):
            stream.push([token], last=count == len(row))
            if stream.stopped:
                return count
        return len(row)


class _Job(NamedTuple):
    """What a call is about: its rows, and how they lie in the batch."""

    engine: "Engine"  # noqa: F821
    prompts: list[list[int]]
    truncated: list[int]
    limits: np.ndarray
    tokens: np.ndarray
    slots: int
    space: int
    values: dict[str, np.ndarray]
    given: list[int]  # tokens that were handed on as text
    source: tuple = ()  # arrays that a model with an encoder reads first


def aligned(rows: list[list[int]], count: int, slots: int) -> np.ndarray:
    """int32 `[count, slots]` with the ends of rows at its end, -1 before them."""
    tokens = np.full((count, slots), -1, "int32")
    for i, row in enumerate(rows):
        tokens[i, slots - len(row) :] = row
    return tokens


def _column(name: str, value, rows: int) -> np.ndarray:
    """A setting for each row, checked."""
    kind = TYPES.get(name, "float32")
    try:
        array = np.asarray(value)
        if kind != "float32" and array.size and array.dtype.kind not in "iu":
            raise ValueError("not whole")
        array = array.astype(kind)
        column = np.array(np.broadcast_to(array, (rows,)))
    except (TypeError, ValueError, OverflowError):
        what = f"{name} is a number or a list of one for each text, not {value!r}"
        raise UserError(what) from None
    _, low, high = OFF.get(
        name, (0, 0 if name == "max_new_tokens" else -np.inf, np.inf)
    )
    if not np.all((column >= low) & (column <= high)):
        what = f"{name} is between {low:g} and {high:g}, not {value!r}"
        raise UserError(what.replace(" and inf", " and more"))
    return column

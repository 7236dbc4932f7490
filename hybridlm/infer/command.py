"""`hybridlm generate`: text in, text out, on the terminal as it comes."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path
from typing import TextIO

from hybridlm.checks import choice
from hybridlm.compose.build import load
from hybridlm.compose.model import HybridLM
from hybridlm.errors import DataError
from hybridlm.files import check_target
from hybridlm.infer.generate import Stream, enlarge, require_language_model
from hybridlm.infer.sampling import Sampler
from hybridlm.ops.backend import devices
from hybridlm.state import ModelState
from hybridlm.state import load_state as read_state
from hybridlm.text import TOKENIZER, ByteCodec, Codec, Decoder, codec_of


def generate_command(
    run: str,
    prompt: list[str] | None = None,
    prompt_file: str | None = None,
    max_new_tokens: int = 200,
    temperature: float = 0.8,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    stop: list[str] | None = None,
    seed: int = 0,
    save_state: str | None = None,
    load_state: str | None = None,
    device: str = "auto",
    cuda_graph: bool = False,
) -> None:
    r"""Write text after a prompt, as it comes. Several prompts are one batch, and are written one after another.

    A long text is read once, and questions go on from there:
        hybridlm generate RUN --prompt-file book.txt --max-new-tokens 0 --save-state book.state
        hybridlm generate RUN --load-state book.state --prompt "Who is she?"

    Args:
        run: a run folder, or a folder that hl.save wrote. Its tokenizer.json reads the text; without one, bytes do.
        prompt: one or more texts to continue.
        prompt_file: UTF-8 text that comes before each prompt, or is the prompt; it is not written out again.
        max_new_tokens: the most tokens to write after each prompt; 0 only reads.
        temperature: 0 always takes the likeliest token; above 0 draws, the higher the wilder.
        top_k: draw from the k likeliest tokens.
        top_p: draw from the fewest likeliest tokens whose probabilities add up to this.
        min_p: draw from tokens at least this times as probable as the likeliest.
        repetition_penalty: above 1, tokens that were there before become less likely.
        stop: texts that end the answer; they are not written. \n is a new line, \t a tab.
        seed: the same seed gives the same text. Prompt i draws with seed + i.
        save_state: file for what the model remembers after prompt and answer.
        load_state: continue from such a file, of the same model, instead of from nothing.
        device: cpu, cuda:0, ..., or auto, which is a GPU if there is one.
        cuda_graph: record the steps as a CUDA graph, however short the answer; without this, where it pays.
    """
    how = Sampler(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=repetition_penalty)
    _check_saving(save_state)
    prompts, before = _read_prompts(prompt, prompt_file)
    model, codec = _load(run, device)
    ids = [codec.encode(before + text) for text in prompts]
    state = _resume(model, load_state, ids, max_new_tokens) if load_state else None
    stream = Stream(model, ids, max_new_tokens, state=state, sampler=how, seed=seed, cuda_graph=cuda_graph or None)
    _write(stream, prompts, _answers(codec, stop or [], len(prompts)), sys.stdout)
    if save_state:
        stream.state.save(save_state)


def _check_saving(save_state: str | None) -> None:
    """DataError, before anything is read, if the state could not be saved there."""
    if save_state is not None:
        check_target("save_state", save_state)


def _read_prompts(prompt: list[str] | None, file: str | None) -> tuple[list[str], str]:
    """The prompts, and the text that comes before each of them."""
    if not prompt and file is None:
        raise DataError('prompt: nothing to continue; give --prompt "some text" or --prompt-file FILE')
    if file is None:
        if "" in prompt:
            raise DataError("prompt: an empty text cannot be continued; give it at least one character")
        return prompt, ""
    if not Path(file).is_file():
        raise DataError(f"prompt_file: {file}: {'a folder, not a' if Path(file).is_dir() else 'no such'} file")
    if not Path(file).stat().st_size:
        raise DataError(f"prompt_file: {file}: empty; there is nothing to continue")
    try:
        return prompt or [""], Path(file).read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"prompt_file: {file}: not UTF-8 text (byte {error.start}); convert it first") from error


def _load(run: str, device: str) -> tuple[HybridLM, Codec]:
    """The model on its device, and the codec of the text that it was trained on."""
    names = [name for name, _ in devices()]
    choice("device", device, ["auto", *names])
    model = load(run, device=(names[1:] or names)[0] if device == "auto" else device)
    require_language_model(model.spec)
    codec = codec_of(run)
    size = model.spec.vocab_size
    if codec.vocab_size > size:
        raise DataError(
            f"{run}: the tokenizer has {codec.vocab_size} tokens and the model {size}; "
            f"put the {TOKENIZER} that it was trained with into the folder"
        )
    if isinstance(codec, ByteCodec) and codec.vocab_size < size:
        print(f"{run}: no {TOKENIZER}; reading and writing bytes, 256 of the model's {size} tokens", file=sys.stderr)
    return model, codec


def _resume(model: HybridLM, path: str, ids: list[list[int]], new: int) -> ModelState:
    """The saved state, one row for each prompt, with room for prompts and answers."""
    state = read_state(path, device=model.embed.weight.device)
    if state.batch == 1 < len(ids):
        state = state.select([0] * len(ids))
    needed = max(state.cursor.lengths) + max(map(len, ids)) + new
    return enlarge(model, state, max(needed, state.max_length))


class Answer:
    """One row's text: decoded token by token, held back where a stop text may have begun."""

    def __init__(self, decoder: Decoder, stops: list[str]):
        self.ended = False
        self._decoder, self._stops = decoder, stops
        self._held = ""

    def feed(self, token: int) -> str:
        """What can be written now. After a stop text `ended` is True, and nothing more comes."""
        if self.ended:
            return ""
        text = self._held + self._decoder.feed(token)
        found = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self.ended, self._held = True, ""
            return text[: min(found)]
        ready = len(text) - max((_begun(text, stop) for stop in self._stops), default=0)
        self._held = text[ready:]
        return text[:ready]

    def rest(self) -> str:
        """What was held back, once nothing more comes."""
        return self._held


def _answers(codec: Codec, stops: list[str], count: int) -> list[Answer]:
    """An answer for each prompt, which ends at any of the stop texts."""
    stops = [_unescape(text) for text in stops]
    return [Answer(codec.decoder(), stops) for _ in range(count)]


def _unescape(text: str) -> str:
    if not text:
        raise DataError("stop: an empty text ends everything at once; give a text, or leave stop out")
    return re.sub(r"\\([nt\\])", lambda found: {"n": "\n", "t": "\t", "\\": "\\"}[found[1]], text)


def _begun(text: str, stop: str) -> int:
    """How many of the last characters of text begin the stop text."""
    return next(n for n in range(min(len(stop) - 1, len(text)), -1, -1) if text.endswith(stop[:n]))


def _write(stream: Stream, prompts: list[str], answers: list[Answer], out: TextIO) -> None:
    """The first prompt's text as it comes, the others' after it; then what it took, on stderr."""
    times = [time.perf_counter()]
    texts = list(prompts)
    _show(texts[0], out)
    for tokens in stream:
        times.append(time.perf_counter())
        pieces = [answer.feed(token) for answer, token in zip(answers, tokens.tolist(), strict=True)]
        _show(pieces[0], out)
        texts = [text + piece for text, piece in zip(texts, pieces, strict=True)]
        for row, answer in enumerate(answers):
            if answer.ended:
                stream.end(row)
    _show(answers[0].rest() + "\n", out)
    for text, answer in zip(texts[1:], answers[1:], strict=True):
        _show("\n" + text + answer.rest() + "\n", out)
    print(_speed(stream, times), file=sys.stderr)


def _speed(stream: Stream, times: list[float]) -> str:
    """times: when it began, and when each step was done; the first step read the prompts too."""
    lengths, wrote = stream.prompts.lengths, int(stream.counts.sum())
    if len(times) == 1:
        return f"prompt: {sum(lengths):,} tokens"
    reading, writing = times[1] - times[0], times[-1] - times[1]
    rate = f" ({(wrote - len(lengths)) / writing:,.0f} tokens/s)" if len(times) > 2 else ""
    return f"read {sum(lengths):,} tokens in {reading:.2f} s, wrote {wrote:,} in {writing:.2f} s{rate}"


_CONTROLS = {code: "\ufffd" for code in [*range(32), *range(127, 160)] if chr(code) not in "\n\t"}


def _show(text: str, out: TextIO) -> None:
    """Write now. What the encoding lacks becomes "?", and on a terminal what could command it becomes U+FFFD."""
    encoding = out.encoding or "utf-8"
    text = text.encode(encoding, "replace").decode(encoding)
    out.write(text.translate(_CONTROLS) if out.isatty() else text)
    out.flush()

"""Find out how a tokenizer's chat template writes an exchange, by rendering one.

    render([user U, assistant A])  =  … U ∥ opening ∥ lead ∥ A ∥ tail,     U and A two marks

``opening`` ends where an answer begins: after the generation prompt where that is a prefix of the
rendering, so that what the template itself writes before an answer (an empty think block) is
``lead`` and is learnt; else right before A. ``tail`` holds the end of a turn: all of it up to and
including its first added token. Neither is guessed from the tokenizer's EOS: a Llama 3 ends a turn
with <|eot_id|>, a ChatML model with <|im_end|>, whatever their EOS is.
"""

import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fedwinnow.curation.datatypes import Sample, Turn
from fedwinnow.curation.errors import ModelError

logger = logging.getLogger(__name__)

Message = dict[str, Any]
"""One turn as a chat template reads it."""

_ASKED, _ANSWERED = "\ue0f0", "\ue0f1"
"""Contents of the rendered exchange: private-use characters that no template writes."""
_PRIVATE = range(0xE000, 0xE0F0)
_TOOL = {
    "type": "function",
    "function": {
        "name": "find",
        "description": "Find a text.",
        "parameters": {"type": "object", "properties": {"text": {"type": "string"}}},
    },
}


class TemplateRefusal(Exception):  # noqa: N818 - a result of a row, turned into its status
    """The chat template does not render these turns; says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """One chat template of a tokenizer, and how it writes an exchange."""

    tokenizer: Any
    template: str | None = None
    """Text of the template, where the tokenizer has several; None: its only one."""
    parts: bool = False
    """Whether contents are lists of {type, text} instead of texts."""
    header: str = ""
    """Start of an assistant's turn, where the template ignores ``add_generation_prompt``."""
    opening: str = ""
    """Text between the question and the answer's first character that is learnt."""
    lead: str = ""
    """Text that the template writes before an answer and that is learnt with it."""
    tail: str = ""
    """Text after the last answer."""
    end: str = ""
    """Start of ``tail`` that ends a turn; "" where the tokenizer's EOS has to."""
    markers: frozenset[str] = frozenset()
    """Added tokens that the template writes around the contents of an exchange."""

    def render(
        self, messages: Sequence[Message], tools: Sequence[Any] = (), *, generation: bool = False
    ) -> str:
        """Render turns; with ``generation`` up to where the assistant speaks.

        Raises:
            TemplateRefusal: the template raises an error, whatever its kind.
        """
        given: dict[str, Any] = {} if self.template is None else {"chat_template": self.template}
        if tools:
            given["tools"] = list(tools)
        turns = [_in_parts(one) for one in messages] if self.parts else list(messages)
        try:
            text = self.tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=generation, **given
            )
        except Exception as error:  # a template is a program: it may raise anything
            roles = ", ".join(str(one["role"]) for one in messages)
            message = f"the turns ({roles}) raise {type(error).__name__}: {error}"
            raise TemplateRefusal(message) from error
        return f"{text}{self.header}" if generation else str(text)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatFormat:
    """How a tokenizer's model is spoken to: its chat template and control tokens."""

    tokenizer: Any
    plain: Dialect | None
    """The template of ordinary samples; None: a line break parts prompt and response."""
    with_tools: Dialect | None
    """The template of samples with tools."""
    control: re.Pattern[str]
    """Matches the text of a control token."""
    control_ids: frozenset[int]
    unwritten: dict[tuple[str, str], bool] = field(default_factory=dict)
    """(template, part of a conversation) → whether it is left out, as far as it was looked for."""
    _system: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, tokenizer: Any) -> "ChatFormat":  # noqa: ANN401 - transformers' tokenizers share no typed base
        """Render an exchange and return what it shows.

        Raises:
            ModelError: the tokenizer has several templates and none for ordinary samples, or its
                template does not write a plain exchange.
        """
        plain, with_tools = _dialects(tokenizer)
        texts = _special_tokens(tokenizer) | (frozenset() if plain is None else plain.markers)
        longest = sorted(
            (text for text in texts if len(text) > 1), key=lambda one: (-len(one), one)
        )
        unknown = getattr(tokenizer, "unk_token", None)
        return cls(
            tokenizer=tokenizer,
            plain=plain,
            with_tools=with_tools,
            control=re.compile("|".join(map(re.escape, longest)) or r"(?!)"),
            control_ids=frozenset(
                int(tokenizer.convert_tokens_to_ids(text)) for text in longest if text != unknown
            ),
        )

    def dialect(self, sample: Sample) -> Dialect | None:
        """Return the template that renders a sample."""
        return self.with_tools if sample.tools else self.plain

    def check_system(self, system_prompt: str) -> None:
        """Refuse a system prompt that the template does not render.

        Raises:
            ModelError: naming ``model.system_prompt``.
        """
        if not system_prompt or self.plain is None:
            return
        if system_prompt not in self._system:
            exchange = [{"role": "system", "content": system_prompt}, *_exchange()]
            why = ""
            try:
                written = system_prompt.strip() in self.plain.render(exchange)
            except TemplateRefusal as refusal:
                why, written = str(refusal), True
            if not written:  # some templates write it only before a question that is the last turn
                logger.warning(
                    "model.system_prompt: the model's chat template leaves it out of a "
                    "conversation that ends with an answer, so samples are learnt without it"
                )
            self._system[system_prompt] = why
        if why := self._system[system_prompt]:
            message = (
                f"model.system_prompt: the model's chat template refuses it: {why}; set "
                "model.system_prompt = ''"
            )
            raise ModelError(message)


def messages_of(sample: Sample, system_prompt: str) -> list[Message]:
    """Return a sample's turns as a chat template reads them, after the system prompt.

    Arguments of a tool call that are a JSON text become the object that templates expect.
    """
    system = [Turn("system", system_prompt)] if system_prompt else []
    return [_message(turn) for turn in (*system, *sample.conversation)]


def tools_of(sample: Sample) -> list[Any]:
    """Return the tools that a sample's model may call."""
    return list(json.loads(sample.tools)) if sample.tools else []


def texts_in(value: object) -> Iterator[str]:
    """Yield every text in a tree of messages or tools, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from texts_in(key)
            yield from texts_in(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from texts_in(inner)


def spelt_control_token(sample: Sample, control: re.Pattern[str]) -> str:
    """Return the first control token that a sample's texts spell, "" where they spell none."""
    found = (control.search(text) for text in _sample_texts(sample))
    return next((one[0] for one in found if one), "")


def _sample_texts(sample: Sample) -> Iterator[str]:
    for turn in sample.conversation:
        yield turn.content
        if turn.details:
            yield from texts_in(json.loads(turn.details))
    if sample.tools:
        yield from texts_in(json.loads(sample.tools))


def unused_character(texts: Sequence[str]) -> str:
    """Return a private-use character that none of the texts holds.

    Raises:
        TemplateRefusal: they hold all of them.
    """
    used = set().union(*texts)
    free = next((chr(code) for code in _PRIVATE if chr(code) not in used), None)
    if free is None:
        message = "the turns hold every private-use character; clean the text"
        raise TemplateRefusal(message)
    return free


def _message(turn: Turn) -> Message:
    details = json.loads(turn.details) if turn.details else {}
    for call in details.get("tool_calls") or ():
        function = call.get("function") if isinstance(call, dict) else None
        for place in (call, function):
            if isinstance(place, dict) and isinstance(place.get("arguments"), str):
                place["arguments"] = _arguments(place["arguments"])
    return {**details, "role": turn.role, "content": turn.content}


def _arguments(text: str) -> object:
    """Return the object that a JSON text holds, or the text where it holds none."""
    try:
        found = json.loads(text)
    except ValueError:
        return text
    return found if isinstance(found, dict) else text


def _in_parts(message: Message) -> Message:
    return {**message, "content": [{"type": "text", "text": message["content"]}]}


def _exchange() -> list[Message]:
    return [
        {"role": "user", "content": _ASKED},
        {"role": "assistant", "content": _ANSWERED},
    ]


def _dialects(tokenizer: Any) -> tuple[Dialect | None, Dialect | None]:  # noqa: ANN401 - see ChatFormat.of
    """Return the templates of ordinary samples and of samples with tools.

    Raises:
        ModelError: see :meth:`ChatFormat.of`.
    """
    held = tokenizer.chat_template
    if not held:
        return None, None
    if not isinstance(held, Mapping):
        found = _probed(Dialect(tokenizer=tokenizer))
        return found, found
    name = "default" if "default" in held else next(iter(held)) if len(held) == 1 else ""
    if not name:
        message = (
            f"model.name: the tokenizer has {len(held)} chat templates ({', '.join(sorted(held))}) "
            "and none is called 'default'; save the one to use as the tokenizer's only "
            "chat_template, or call it 'default'"
        )
        raise ModelError(message)
    plain = _probed(Dialect(tokenizer=tokenizer, template=held[name]))
    if "tool_use" not in held or name == "tool_use":
        return plain, plain
    return plain, _probed(Dialect(tokenizer=tokenizer, template=held["tool_use"]), [_TOOL])


def _probed(bare: Dialect, tools: Sequence[Any] = ()) -> Dialect:
    """Return the dialect with what a rendered exchange shows.

    Raises:
        ModelError: the template writes no plain exchange, whether contents are texts or parts.
    """
    why = ""
    for parts in (False, True):
        dialect = Dialect(tokenizer=bare.tokenizer, template=bare.template, parts=parts)
        try:
            full = dialect.render(_exchange(), tools)
            if _ASKED in full and _ANSWERED in full.partition(_ASKED)[2]:
                return _described(dialect, full, tools)
            why = why or "an exchange is rendered without the question or without the answer"
        except TemplateRefusal as refusal:
            why = why or str(refusal)
    message = (
        f"model.name: the tokenizer's chat template does not write a plain exchange: {why}; "
        "repair tokenizer.chat_template"
    )
    raise ModelError(message)


def _described(dialect: Dialect, full: str, tools: Sequence[Any]) -> Dialect:
    """Return the dialect with opening, lead, tail and end as the exchange ``full`` shows them."""
    asked, answered = full.index(_ASKED) + 1, full.rindex(_ANSWERED)
    before, prompt = full[:answered], ""
    try:
        before = dialect.render(_exchange()[:1], tools)
        prompt = dialect.render(_exchange()[:1], tools, generation=True)
    except TemplateRefusal:  # a template that wants an answer to every question
        prompt = full[:answered]
    begin, header = answered, ""
    if prompt == before and full.startswith(before) and full[len(before) : answered].strip():
        header = full[len(before) : answered]
    elif full.startswith(prompt) and asked <= len(prompt) <= answered:
        begin = len(prompt)
    tail, added = full[answered + 1 :], _added_tokens(dialect.tokenizer)
    ends = [(tail.index(text), -len(text), text) for text in added if text in tail]
    place, _, marker = min(ends, default=(0, 0, ""))
    around = full[:begin] + tail
    return Dialect(
        tokenizer=dialect.tokenizer,
        template=dialect.template,
        parts=dialect.parts,
        header=header,
        opening=full[asked:begin],
        lead=full[begin:answered],
        tail=tail,
        end=tail[: place + len(marker)] if marker else "",
        markers=frozenset(text for text in added if text in around),
    )


def _special_tokens(tokenizer: Any) -> frozenset[str]:  # noqa: ANN401 - see ChatFormat.of
    """Return the texts of the tokens that a tokenizer calls special."""
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    found = {str(token) for token in added if token.special}
    return frozenset(found | set(map(str, getattr(tokenizer, "all_special_tokens", ()))))


def _added_tokens(tokenizer: Any) -> frozenset[str]:  # noqa: ANN401 - see ChatFormat.of
    """Return the texts of all added tokens, special or not, that are more than white space."""
    added = map(str, getattr(tokenizer, "added_tokens_decoder", {}).values())
    return frozenset(text for text in {*added, *_special_tokens(tokenizer)} if text.strip())

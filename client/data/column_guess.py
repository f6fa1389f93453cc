"""Guess which columns of a data set hold prompt, response or chat."""

from fedwinnow.client.data_files.readers import columns_of
from fedwinnow.client.data_files.rows import named
from fedwinnow.curation.config.scoring import ColumnsSection
from fedwinnow.curation.errors import DataError

PROMPTS = ("prompt", "instruction", "question", "input")


CONTEXTS = ("input", "context")
"""Columns that belong to a prompt beside another column."""


RESPONSES = ("response", "output", "answer", "completion")


CHATS = ("messages", "conversations", "conversation")


TOOLS = ("tools", "functions")


DOMAINS = ("domain", "category", "source")


def map_columns(source: str) -> ColumnsSection:
    """Return a guess of what each column of a source holds.

    Raises:
        DataError: the source is missing, empty or broken, or nothing can be guessed.
    """
    return guess_columns(columns_of(source), source)


def guess_columns(names: tuple[str, ...], source: str) -> ColumnsSection:
    """Map columns by the names that data sets commonly use.

    Raises:
        DataError: neither chat messages nor a prompt and a response can be found.
    """
    messages, prompt, response = (_first(names, of) for of in (CHATS, PROMPTS, RESPONSES))
    if not messages and not (prompt and response):
        listed = source.lower().endswith(".json")
        nested = "; rows that lie in a list under a key: write that list alone" if listed else ""
        message = (
            f"{source}: columns {named(names)} hold no chat ({', '.join(CHATS)}) and no pair "
            f"of prompt ({', '.join(PROMPTS)}) and response ({', '.join(RESPONSES)}); rename two "
            f"columns{nested}"
        )
        raise DataError(message)
    return ColumnsSection(
        prompt=prompt or "prompt",
        prompt_template="" if messages else _template(names, prompt),
        response=response or "response",
        messages=messages,
        tools=_first(names, TOOLS),
        domain=guess_domain(names),
    )


def guess_domain(names: tuple[str, ...]) -> str:
    """Return the column that holds the domain; "" where none has such a name."""
    return _first(names, DOMAINS)


def _template(names: tuple[str, ...], prompt: str) -> str:
    """Return the template that joins a prompt and its context; "" where there is no context."""
    lower = {name.lower(): name for name in names}
    found = [lower[name] for name in CONTEXTS if name in lower and lower[name] != prompt]
    return "\n\n".join(f"{{{name}}}" for name in (prompt, *found)) if found else ""


def _first(names: tuple[str, ...], choices: tuple[str, ...]) -> str:
    lower = {name.lower(): name for name in names}
    return next((lower[choice] for choice in choices if choice in lower), "")

"""Guess which columns of a data set hold prompt, response or chat."""

from fedwinnow.curation.config.scoring import ColumnsSection
from fedwinnow.curation.errors import DataError

PROMPTS = ("prompt", "instruction", "question", "input")


RESPONSES = ("response", "output", "answer", "completion")


CHATS = ("messages", "conversations", "conversation")


DOMAINS = ("domain", "category", "source")


def guess_columns(names: tuple[str, ...], source: str) -> ColumnsSection:
    """Map columns by the names that data sets commonly use.

    Raises:
        DataError: neither chat messages nor a prompt and a response can be found.
    """
    messages, prompt, response = (_first(names, of) for of in (CHATS, PROMPTS, RESPONSES))
    if not messages and not (prompt and response):
        message = (
            f"{source}: columns {', '.join(names)} hold no chat ({', '.join(CHATS)}) and no pair "
            f"of prompt ({', '.join(PROMPTS)}) and response ({', '.join(RESPONSES)}); rename two "
            "columns"
        )
        raise DataError(message)
    return ColumnsSection(
        prompt=prompt or "prompt",
        response=response or "response",
        messages=messages,
        domain=guess_domain(names),
    )


def guess_domain(names: tuple[str, ...]) -> str:
    """Return the column that holds the domain; "" where none has such a name."""
    return _first(names, DOMAINS)


def _first(names: tuple[str, ...], choices: tuple[str, ...]) -> str:
    lower = {name.lower(): name for name in names}
    return next((lower[choice] for choice in choices if choice in lower), "")

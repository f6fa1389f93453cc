"""Guess which columns of a data set hold prompt, response or chat."""

from fedwinnow.curation.config.scoring import ColumnsSection
from fedwinnow.curation.errors import DataError

PROMPTS = ("prompt", "instruction", "question", "input")


RESPONSES = ("response", "output", "answer", "completion")


CHATS = ("messages", "conversations", "conversation")


def guess_columns(names: tuple[str, ...], source: str) -> ColumnsSection:
    """Map columns by the names that data sets commonly use.

    Raises:
        DataError: neither chat messages nor a prompt and a response can be found.
    """
    lower = {name.lower(): name for name in names}

    def first(choices: tuple[str, ...]) -> str:
        return next((lower[choice] for choice in choices if choice in lower), "")

    messages, prompt, response = first(CHATS), first(PROMPTS), first(RESPONSES)
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
        domain=first(("domain", "category", "source")),
    )

"""Options and progress of a pass over samples."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fedwinnow.curation.config.scoring import MeasuringSection, ModelSection
from fedwinnow.curation.datatypes import Sample
from fedwinnow.curation.model.lora_model import LoadedModel
from fedwinnow.curation.model.pretrained import encode_all
from fedwinnow.curation.tokens.tokenization import Encoding

OnProgress = Callable[[int, int], None]
"""Called with (units of work done, all of them): sample passes, samples or optimizer steps."""
OnTaskProgress = Callable[[str, int, int], None]
"""The same for several computations: called with (name of one, units done, all of them)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PassOptions:
    """Options for reading and batching; ``batch_tokens`` and ``tokens`` change rounding only."""

    batch_tokens: int
    """Tokens of a batch, padding included; 0 for as many as memory allows."""
    max_length: int
    """Longest sample in tokens; longer ones are cut."""
    system_prompt: str = ""
    """System message before every sample."""
    tokens: Path | None = None
    """Folder of the token cache (``client/measuring/token_cache.py``); None: no cache."""

    @classmethod
    def of(
        cls, model: ModelSection, measuring: MeasuringSection, tokens: Path | None = None
    ) -> "PassOptions":
        """Build the options from the sections of a run that set them."""
        return cls(
            batch_tokens=measuring.batch_tokens,
            max_length=model.max_length,
            system_prompt=model.system_prompt,
            tokens=tokens,
        )

    def encode(self, loaded: LoadedModel, samples: Iterable[Sample]) -> Iterator[Encoding]:
        """Tokenize samples by these options, without the token cache."""
        return encode_all(
            loaded, samples, max_length=self.max_length, system_prompt=self.system_prompt
        )


@dataclass(slots=True, kw_only=True)
class PassProgress:
    """Counter of finished sample passes."""

    total: int
    on_progress: OnProgress | None
    done: int = 0

    def add(self, number: int) -> None:
        """Count passes and report them."""
        self.done += number
        if self.on_progress is not None:
            self.on_progress(self.done, self.total)

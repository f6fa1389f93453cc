"""Answer the requests to one silo: ``Site.handle(request) -> reply``, whatever the transport.

A site keeps the state of each run on disk (``client/runs/run_files.py``), with every reply it gave.
A repeated request is answered from disk; a request out of order, or one that the site does not
allow, is answered by a refusal.
"""

import hashlib
import logging
from dataclasses import dataclass, field, replace
from pathlib import Path

from fedwinnow.client.data.site_data import open_site_data
from fedwinnow.client.phases.table import answer
from fedwinnow.client.runs.process_cache import ProcessCache, set_deterministic
from fedwinnow.client.runs.refusals import refusal_of
from fedwinnow.client.runs.run_files import RunFiles
from fedwinnow.client.runs.site_run import SiteRun, parse_terms
from fedwinnow.curation.atomic_files import write_atomically
from fedwinnow.curation.config.run import RunTerms
from fedwinnow.curation.config.site import SiteConfig
from fedwinnow.curation.config.strict_toml import canonical_json
from fedwinnow.curation.errors import (
    CurationError,
    DataError,
    ModelError,
    OutputError,
    ProtocolError,
)
from fedwinnow.curation.model.pretrained import load_tokenizer
from fedwinnow.curation.protocol import wire
from fedwinnow.curation.protocol.header import PROTOCOL
from fedwinnow.curation.protocol.messages import Reply, Request
from fedwinnow.curation.protocol.requests import JoinRequest
from fedwinnow.curation.tokens.chat_templates import ChatFormat
from fedwinnow.strategies.terms_check import check_teacher, check_terms

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Site:
    """One silo, and the state of its runs."""

    config: SiteConfig
    cache: ProcessCache = field(default_factory=ProcessCache)
    _runs: dict[str, SiteRun] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Return the site's name from its own configuration."""
        return self.config.site.name

    def handle(self, request: Request, run: SiteRun | None = None) -> Reply:
        """Answer a request; never raises, and no error text holds anything of the silo's data.

        In a simulation all is one person's, who has no log of the site's own: errors are told.

        Args:
            request: What is asked.
            run: The run, where it is open already: a join need not open its data twice.
        """
        try:
            return self.answer(request, run)
        except CurationError as error:
            logger.warning("site %s refuses %s: %s", self.name, request.header.phase, error)
            own = isinstance(error, DataError | ModelError | OutputError)
            told = self.config.simulation or not own
            return refusal_of(error, request.header, self.name, told=told)
        except Exception as error:
            logger.exception("site %s failed in phase %s", self.name, request.header.phase)
            return refusal_of(error, request.header, self.name, told=self.config.simulation)

    def answer(self, request: Request, run: SiteRun | None = None) -> Reply:
        """Answer a request, raising every error: for tests and for a local simulation.

        Raises:
            CurationError: whatever stands in the way, with what to change.
        """
        _check_protocol(request)
        key = hashlib.sha256(wire.encode(request)).hexdigest()[:32]
        if run is not None:
            work = run
        elif isinstance(request, JoinRequest):
            work = self.join_run(request)
        else:
            work = self.run_of(request.header.run)
        stored = work.files.reply(request.header.phase, key)
        if stored.exists():
            logger.info("site %s answers %s from disk", self.name, request.header.phase)
            return _reply(wire.decode(stored.read_bytes()))
        set_deterministic(work.terms.run.threads)
        reply = answer(work, request)
        write_atomically(stored, wire.encode(reply))
        return reply

    def join_run(self, request: JoinRequest) -> SiteRun:
        """Open the data of a run that is joined, and store its terms; nothing is computed.

        Raises:
            CurationError: the terms cannot be met here, or the data cannot be opened.
        """
        _check_protocol(request)
        run = request.header.run
        if not run or not all(c.isalnum() or c in "-_" for c in run):
            message = f"run id {run!r}: expected letters, digits, '-' and '_'"
            raise ProtocolError(message)
        terms = parse_terms(request.terms)
        folder = Path(self.config.work) / run
        file = RunFiles(folder).terms
        if file.exists() and file.read_text(encoding="utf-8") != canonical_json(terms):
            message = f"run {run} is already joined under other terms; start it under a new run id"
            raise ProtocolError(message)
        self._runs[run] = self._make(folder, terms)
        write_atomically(file, canonical_json(terms).encode())
        return self._runs[run]

    def run_of(self, run: str) -> SiteRun:
        """Return the state of a run that this site joined.

        Raises:
            ProtocolError: the site has not joined it.
        """
        if run not in self._runs:
            file = RunFiles(Path(self.config.work) / run).terms
            if not run or not all(c.isalnum() or c in "-_" for c in run) or not file.exists():
                message = (
                    f"run {run!r} has not been joined by this site; send the join request first"
                )
                raise ProtocolError(message)
            terms = parse_terms(file.read_text(encoding="utf-8"))
            self._runs[run] = self._make(file.parent, terms)
        return self._runs[run]

    def _make(self, folder: Path, terms: RunTerms) -> SiteRun:
        plugins = check_terms(terms)
        check_teacher(plugins, self.config.teacher)
        own = self.config.teacher
        teacher = replace(terms.teacher, name=own.name, gguf_file=own.gguf_file)
        model = replace(
            terms.model, name=self.config.model.name, gguf_file=self.config.model.gguf_file
        )
        control = self.cache.keep(
            ("control tokens", canonical_json(model)),
            lambda: ChatFormat.of(load_tokenizer(model)).control,
        )
        return SiteRun(
            config=self.config,
            terms=terms,
            folder=folder,
            data=open_site_data(self.config, terms, control),
            model=model,
            cache=self.cache,
            plugins=plugins,
            teacher=teacher,
        )


def _check_protocol(request: Request) -> None:
    if request.header.protocol != PROTOCOL:
        message = (
            f"protocol {request.header.protocol} came, this site speaks {PROTOCOL}; "
            "upgrade the older side"
        )
        raise ProtocolError(message)


def _reply(message: object) -> Reply:
    return message  # type: ignore[return-value]  # stored replies were encoded by this class

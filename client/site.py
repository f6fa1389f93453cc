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
from fedwinnow.client.runs.refusals import refusal_of, refused_by
from fedwinnow.client.runs.run_files import open_runs, run_files
from fedwinnow.client.runs.site_run import SiteRun, parse_terms
from fedwinnow.client.runs.told_text import constant, tell
from fedwinnow.curation.atomic_files import write_atomically
from fedwinnow.curation.config.run import RunTerms
from fedwinnow.curation.config.site import SiteConfig
from fedwinnow.curation.config.strict_toml import canonical_json
from fedwinnow.curation.errors import ProtocolError, RefusalError
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
    """The run that was asked last, by its id: each holds a copy of the data in scratch."""

    @property
    def name(self) -> str:
        """Return the site's name from its own configuration."""
        return self.config.site.name

    def handle(self, request: Request) -> Reply:
        """Answer a request; never raises. A refusal's full reason goes to the site's own log."""
        try:
            return self.answer(request)
        except Exception as error:  # noqa: BLE001 - logged with the refusal's reference
            simulation = self.config.simulation
            return refusal_of(error, request.header, self.name, simulation=simulation)

    def answer(self, request: Request) -> Reply:
        """Answer a request, raising every error: for whoever makes the refusal itself.

        Raises:
            CurationError: whatever stands in the way, with what to change.
        """
        if request.header.protocol != PROTOCOL:
            message = (
                f"protocol {request.header.protocol} came, this site speaks {PROTOCOL}; "
                "upgrade the older side"
            )
            told = tell(
                "protocol {came} came, this site speaks another one; upgrade the older side",
                came=constant("header.protocol", request),
            )
            raise ProtocolError(message, clause="protocol", told=told)
        with refused_by("protocol"):  # a request that holds a NaN cannot be written
            key = hashlib.sha256(wire.encode(request)).hexdigest()[:32]
        work = (
            self._join(request)
            if isinstance(request, JoinRequest)
            else self.run_of(request.header.run)
        )
        stored = work.files.reply(request.header.phase, key)
        if stored.exists():
            logger.info("site %s answers %s from disk", self.name, request.header.phase)
            return _reply(wire.decode(stored.read_bytes()))
        set_deterministic(work.terms.run.threads)
        reply = answer(work, request)
        write_atomically(stored, wire.encode(reply))
        return reply

    def _join(self, request: JoinRequest) -> SiteRun:
        run = request.header.run
        file = run_files(Path(self.config.work), run).terms
        with refused_by("terms"):
            terms = parse_terms(request.terms)
        if file.exists() and file.read_text(encoding="utf-8") != canonical_json(terms):
            message = f"run {run} is already joined under other terms; start it under a new run id"
            told = tell(
                "run {run} is already joined under other terms; start it under a new run id",
                run=constant("run", request.header),
            )
            raise ProtocolError(message, clause="terms", told=told)
        if not file.exists():
            self._check_room()
        made = self._keep(run, file.parent, terms)
        write_atomically(file, canonical_json(terms).encode())
        return made

    def run_of(self, run: str) -> SiteRun:
        """Return the state of a run that this site joined.

        Raises:
            ProtocolError: the site has not joined it.
        """
        if run not in self._runs:
            file = run_files(Path(self.config.work), run).terms
            if not file.exists():
                message = (
                    f"run {run!r} has not been joined by this site; send the join request first"
                )
                told = tell(
                    "this run has not been joined by this site; send the join request first"
                )
                raise ProtocolError(message, clause="protocol", told=told)
            terms = parse_terms(file.read_text(encoding="utf-8"))
            return self._keep(run, file.parent, terms)
        return self._runs[run]

    def _check_room(self) -> None:
        """Refuse a further run where as many are open as the policy allows.

        Raises:
            RefusalError: clause "policy.max_open_runs".
        """
        most = self.config.policy.max_open_runs
        if not self.config.simulation and len(open_runs(Path(self.config.work))) >= most:
            message = (
                f"policy.max_open_runs: this site allows {most} runs that are not closed; close "
                "one, or let the site's operator remove its folder"
            )
            raise RefusalError(message, clause="policy.max_open_runs")

    def _keep(self, run: str, folder: Path, terms: RunTerms) -> SiteRun:
        """Open a run in place of the one that was open: one copy of the data lies in scratch."""
        self._runs.clear()
        self._runs[run] = self._make(folder, terms)
        return self._runs[run]

    def _make(self, folder: Path, terms: RunTerms) -> SiteRun:
        with refused_by("terms"):
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


def _reply(message: object) -> Reply:
    return message  # type: ignore[return-value]  # stored replies were encoded by this class

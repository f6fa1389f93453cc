"""Run a federation in one process: no Flower, no Ray, but every message is encoded and decoded."""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, TypeAlias

from fedwinnow.client.runs.process_cache import ProcessCache
from fedwinnow.client.site import Site
from fedwinnow.curation.config.identity import run_id, sites_folder
from fedwinnow.curation.config.load_files import site_configs
from fedwinnow.curation.config.run import RunConfig
from fedwinnow.curation.errors import InputError
from fedwinnow.curation.protocol import wire
from fedwinnow.curation.protocol.messages import Reply, Request
from fedwinnow.curation.protocol.replies import Refusal
from fedwinnow.curation.protocol.requests import JoinRequest
from fedwinnow.server.report.final_files import finish
from fedwinnow.server.run.driver import Progress, drive
from fedwinnow.server.run.preflight import check_config
from fedwinnow.server.run.run_folder import RunFolder
from fedwinnow.server.state import RunState
from fedwinnow.server.transport.interface import Delivery, Earlier
from fedwinnow.simulations.datasets.planted_truth import selection_figures


class AnsweringSite(Protocol):
    """Object that answers requests as a site does."""

    def handle(self, request: Request) -> Reply:
        """Answer a request; errors become refusals."""
        ...

    def answer(self, request: Request) -> Reply:
        """Answer a request; raise errors."""
        ...


SiteWrapper: TypeAlias = Callable[[str, AnsweringSite], AnsweringSite]
"""Function from a site's name and the site to the one that is called instead, for studies of
misbehaving sites."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InProcess:
    """Transport that calls the sites one after the other, in order of name."""

    sites: Mapping[str, AnsweringSite]

    def exchange(
        self,
        request: Request,
        sites: Sequence[str],
        *,
        deadline: float,  # noqa: ARG002 - a call in this process cannot be cut short
        earlier: Earlier | None = None,
    ) -> Iterator[Delivery]:
        """Send a request to each site; messages are encoded and decoded as on the wire."""
        for name in sites or sorted(self.sites):
            for missed in (earlier or {}).get(name, ()):
                made_up = self._ask(name, missed)
                yield replace(made_up, request=missed)
                if isinstance(made_up.reply, Refusal):
                    break
            else:
                yield self._ask(name, request)

    def _ask(self, name: str, request: Request) -> Delivery:
        data, site = wire.encode(request), self.sites[name]
        received: Request = wire.decode(data)  # type: ignore[assignment]  # a request was encoded
        # A join checks the person's own input: such an error ends a local simulation at once.
        answer = site.answer if isinstance(request, JoinRequest) else site.handle
        back = wire.encode(answer(received))
        reply: Reply = wire.decode(back)  # type: ignore[assignment]  # a reply was encoded
        return Delivery(site=name, reply=reply, bytes_down=len(data), bytes_up=len(back))


def simulate(
    config: RunConfig,
    *,
    resume: bool = False,
    progress: Progress | None = None,
    command: str = "",
    cache: ProcessCache | None = None,
    wrap: SiteWrapper | None = None,
) -> Path:
    """Run a scenario in this process and return its run folder.

    Raises:
        InputError: the scenario, its data, its model or the run folder is at fault.
        RunError: the run could not go on.
    """
    state, store = run_phases(config, resume=resume, progress=progress, cache=cache, wrap=wrap)
    figures = selection_figures(config, sites_folder(config), run_id(config))
    finish(state, store, command=command, selection=figures)
    return store.folder


def run_phases(
    config: RunConfig,
    *,
    resume: bool = False,
    progress: Progress | None = None,
    cache: ProcessCache | None = None,
    wrap: SiteWrapper | None = None,
) -> tuple[RunState, RunFolder]:
    """Run all phases of a scenario, without the final files.

    Args:
        config: The scenario.
        resume: Whether to go on from the last commit in the run folder.
        progress: Called on every delivery.
        cache: Process cache with the loaded model, or None.
        wrap: Wraps each site, or None.

    Raises:
        InputError: the scenario, its data, its model or the run folder is at fault.
        RunError: the run could not go on.
    """
    check_config(config)
    run_folder = Path(config.run.output) / config.run.name
    new = not run_folder.exists()
    store = RunFolder.open(config, resume=resume)
    shared = cache or ProcessCache()
    sites: dict[str, AnsweringSite] = {
        site.site.name: Site(config=site, cache=shared)
        for site in site_configs(config, str(sites_folder(config)))
    }
    if wrap is not None:
        sites = {name: wrap(name, site) for name, site in sites.items()}
    state = store.begin(config, run_id(config))
    try:
        state = drive(state, InProcess(sites=sites), store=store, progress=progress)
    except InputError:
        if new and not (store.load() or state).records:
            shutil.rmtree(run_folder)  # nothing was computed: leave nothing half-written
        raise
    return state, store

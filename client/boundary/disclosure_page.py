"""Render what may leave a site as one self-contained HTML page: no script, no request."""

from importlib.resources import files

import jinja2

from fedwinnow.client.boundary.disclosure import STAYS, disclosed_numbers, why_all_refused
from fedwinnow.curation.config.site import SiteConfig


def disclosure_page(config: SiteConfig) -> str:
    """Return the page for a data-protection officer: numbers of the samples, then all else."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    text = (files("fedwinnow.client.boundary") / "disclosure.html").read_text(encoding="utf-8")
    numbers = disclosed_numbers(config)
    return environment.from_string(text).render(
        site=config.site.name,
        refused=why_all_refused(config.policy),
        private=[one for one in numbers if one.bound],
        other=[one for one in numbers if not one.bound],
        stays=STAYS,
    )

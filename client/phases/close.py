"""Answer a close request: drop the token cache, send a receipt."""

from fedwinnow.client.measuring.token_cache import remove_tokens
from fedwinnow.client.runs.site_run import SiteRun
from fedwinnow.curation.protocol.messages import Reply
from fedwinnow.curation.protocol.replies import Receipt
from fedwinnow.curation.protocol.requests import CloseRequest


def close(run: SiteRun, request: CloseRequest) -> Reply:
    """Acknowledge the end of the run, and remove the samples' tokens."""
    remove_tokens(run.files.tokens)
    return Receipt(header=request.header, site=run.site)

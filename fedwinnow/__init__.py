"""fedwinnow: federated collaborative curation for language models."""

from pathlib import Path as _Path

_here = _Path(__file__).parent
if not (_here / "client" / "app.py").is_file():  # no links: sub-packages are this folder's siblings
    __path__.append(str(_here.parent))

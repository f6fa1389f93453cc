"""Laws of docs/threat-model.md: what it leans on is there."""

import re
from dataclasses import fields
from pathlib import Path

from fedwinnow.curation.config.site import AgentSection, GateSection, PolicySection, SiteSection

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "threat-model.md").read_text(encoding="utf-8")
SECTIONS = {
    "policy": PolicySection,
    "site": SiteSection,
    "gate": GateSection,
    "agent": AgentSection,
}


def test_threat_model_names_tests_that_exist():
    """Every test file and every test that the page names."""
    for path in re.findall(r"`(tests/[\w/]+\.py)`", PAGE):
        assert (ROOT / path).is_file(), path
    code = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    names = re.findall(r"`(test_\w+|…_\w+)`", PAGE)
    assert names
    for name in names:
        assert re.search(rf"def \w*{name.removeprefix('…')}\(", code), name


def test_threat_model_names_clauses_that_exist():
    """Every key of site.toml that the page names by its section."""
    named = re.findall(r"`(policy|site|gate|agent)\.(?!toml)(\w+)\*?`", PAGE)
    assert len(named) > 5
    for section, key in named:
        keys = [field.name for field in fields(SECTIONS[section])]
        assert any(k.startswith(key) if key.endswith("_") else k == key for k in keys), key


def test_threat_model_says_what_is_not_there():
    """The page says plainly that neither secure sums nor noise are built."""
    assert PAGE.count("**no**") >= 2
    assert "**not built**" in PAGE
    assert "no noise yet" in PAGE

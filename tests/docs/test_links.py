"""Every link of every page leads somewhere, and the README stays short."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.markdown import PAGES, ROOT, anchors, fault, links

README = ROOT / "README.md"
MOST_LINES, FIRST_COMMAND, LONGEST = 150, 40, 120


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    faults = [wrong for target in links(page.read_text()) if (wrong := fault(page, target))]
    assert not faults


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_path_of_the_project_that_a_page_names_exists(page: Path) -> None:
    named = re.findall(r"`((?:sep|cluster|pipeline|tests|docs)/[\w./-]*)`", page.read_text())
    assert not [path for path in named if not (ROOT / path).exists()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_has_one_title_and_no_path_of_a_machine(page: Path) -> None:
    text = page.read_text()
    assert text.startswith("# ")
    assert len(re.findall(r"^# ", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)) == 1
    assert not re.search(r"(?<![\w.])/(work|root)/", text)


def test_the_readme_leads_to_every_page() -> None:
    seen, waiting = {README}, [README]
    while waiting:
        page = waiting.pop()
        for target in links(page.read_text()):
            there = (page.parent / target.partition("#")[0]).resolve()
            if there.suffix == ".md" and there.is_file() and there not in seen:
                seen.add(there)
                waiting.append(there)
    assert seen == set(PAGES)


def test_the_readme_is_short() -> None:
    lines = README.read_text().splitlines()
    assert len(lines) <= MOST_LINES
    assert not [line for line in lines if len(line) > LONGEST and not line.startswith(("|", "<"))]
    first = next(number for number, line in enumerate(lines, 1) if line.startswith("```"))
    assert first + 1 <= FIRST_COMMAND
    assert lines[first].startswith("make demo")


def test_links_are_found_and_code_is_not_read() -> None:
    text = """[a](one.md) ![b](two.png "title") [![c](three.png)](four.md) `[no](no.md)`
<img src="five.png" alt="x">

```
[no](no.md)
```

[d]: six.md
"""
    assert sorted(links(text)) == ["five.png", "four.md", "one.md", "six.md", "two.png"]


def test_headings_are_named_as_github_does() -> None:
    text = '# A `b` and c\n\n## Two, three: four\n\n## Again\n\n## Again\n\n```\n# no heading\n```\n<a id="own"></a>\n'
    assert anchors(text) == {"a-b-and-c", "two-three-four", "again", "again-1", "own"}


def test_a_dead_link_is_named(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Page\n")
    assert fault(page, "https://example.org/x") is None
    assert fault(page, "#page") is None
    assert fault(page, "#other") == "#other: page.md has no heading for #other"
    assert fault(page, "none.md#x") == "none.md#x: there is no none.md"

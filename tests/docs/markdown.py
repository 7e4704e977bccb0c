"""The pages of the project as a reader sees them: their links, pictures and headings."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)")
DEFINITION = re.compile(r"^\s{0,3}\[[^\]]+\]:\s*<?(\S+?)>?\s*$", re.MULTILINE)
TAG = re.compile(r"<(?:img|a|source)\s[^>]*?(?:src|href)=\"([^\"]+)\"")
ANCHOR = re.compile(r"<[a-z]+\s[^>]*?(?:id|name)=\"([^\"]+)\"")
FENCE = re.compile(r"^\s*(`{3,}|~{3,}).*?^\s*\1\s*$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"(`+)(?!`).+?(?<!`)\1(?!`)")
HEADING = re.compile(r"^#{1,6}\s+(.+?)\s*#*\s*$", re.MULTILINE)
ELSEWHERE = re.compile(r"[a-z][a-z0-9+.-]*:|//")


def links(text: str) -> list[str]:
    """Every target of a link or picture, in order; what stands in code is no link."""
    prose = CODE.sub("", FENCE.sub("", text))
    return [match[1] for pattern in (LINK, DEFINITION, TAG) for match in pattern.finditer(prose)]


def anchors(text: str) -> set[str]:
    """What a link to this page may name after `#`: its headings, as GitHub names them, and ids in its HTML."""
    found: dict[str, int] = {}
    names = set(ANCHOR.findall(FENCE.sub("", text)))
    for heading in HEADING.findall(FENCE.sub("", text)):
        shown = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
        name = re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-")
        number = found.setdefault(name, 0)
        found[name] += 1
        names.add(f"{name}-{number}" if number else name)
    return names


def fault(page: Path, target: str) -> str | None:
    """What is wrong with a link of a page; None if it leads somewhere, or out of the project."""
    if ELSEWHERE.match(target):
        return None
    name, _, anchor = target.partition("#")
    there = (page.parent / name).resolve() if name else page
    if not there.exists():
        return f"{target}: there is no {name}"
    if anchor and (there.suffix != ".md" or anchor not in anchors(there.read_text())):
        return f"{target}: {there.name} has no heading for #{anchor}"
    return None

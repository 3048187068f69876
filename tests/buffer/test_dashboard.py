from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from services.buffer.api import create_app
from services.buffer.api_settings import ApiSettings
from services.buffer.dashboard import STATIC

HTML = (STATIC / "index.html").read_text()
SCRIPTS = sorted(STATIC.glob("*.js"))


class Page(HTMLParser):
    """What the page is made of: tags with their attributes, and the text inside scripts and styles."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inline: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] in ("script", "style") and data.strip():
            self.inline.append(data)


def page() -> Page:
    parsed = Page()
    parsed.feed(HTML)
    return parsed


def test_the_page_runs_no_inline_script_and_has_no_inline_style() -> None:
    assert page().inline == []
    assert "style" not in {tag for tag, _ in page().tags}
    attributes = {name for _, attributes in page().tags for name in attributes}
    assert not {name for name in attributes if name.startswith("on") or name == "style"}


def test_everything_that_the_page_loads_is_ours_and_is_there() -> None:
    loaded = [
        address
        for tag, attributes in page().tags
        for name in ("src", "href")
        if tag in ("script", "link", "img") and (address := attributes.get(name))
    ]
    imported = [f"/static/{name}" for file in SCRIPTS for name in re.findall(r'from "\./([^"]+)"', file.read_text())]
    assert loaded
    assert imported
    with TestClient(create_app(ApiSettings()), base_url="http://127.0.0.1") as client:
        for address in {*loaded, *imported}:
            assert address.startswith("/static/")
            assert client.get(address).status_code == 200


@pytest.mark.parametrize("file", SCRIPTS, ids=lambda file: file.name)
def test_text_from_a_model_can_only_become_text(file: Path) -> None:
    ways = (
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function|srcdoc|DOMParser|createContextual"
    )
    assert re.findall(ways, file.read_text()) == []


@pytest.mark.parametrize("file", [*SCRIPTS, STATIC / "style.css", STATIC / "index.html"], ids=lambda file: file.name)
def test_nothing_is_fetched_from_elsewhere(file: Path) -> None:
    elsewhere = set(re.findall(r"(?:https?:)?//[a-z0-9.-]+\.[a-z]{2,}", file.read_text()))
    assert elsewhere <= {"http://www.w3.org"}  # the name of the SVG namespace


def test_every_element_that_the_scripts_look_up_is_on_the_page() -> None:
    ids = {attributes["id"] for _, attributes in page().tags if "id" in attributes}
    wanted = {name for file in SCRIPTS for name in re.findall(r'byId\("([^"]+)"\)', file.read_text())}
    assert wanted
    assert wanted - ids == set()


def test_every_label_and_heading_that_is_pointed_at_exists() -> None:
    tags = page().tags
    ids = {attributes["id"] for _, attributes in tags if "id" in attributes}
    pointed = {
        value for _, attributes in tags for name in ("aria-labelledby", "for") if (value := attributes.get(name))
    }
    assert pointed
    assert pointed - ids == set()


def test_the_page_says_its_language_and_fits_a_phone() -> None:
    tags = page().tags
    assert ("html", {"lang": "en"}) in tags
    assert any(attributes.get("name") == "viewport" for _, attributes in tags)
    assert "prefers-color-scheme: dark" in (STATIC / "style.css").read_text()

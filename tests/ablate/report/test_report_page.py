"""report.html by a parser: well formed, alone, every id resolves, sections that are there or said to be missing."""

from __future__ import annotations

import re
from collections import Counter
from html.parser import HTMLParser

import pytest
import synthetic

from hybridlm.ablate.report import write

VOID = {"meta", "link", "img", "br", "hr", "input"}
NAMES = ("recall", "curves", "hostile")
FETCHING = ("src", "srcset", "href", "xlink:href", "action", "formaction", "poster", "data", "background", "ping")


class Page(HTMLParser):
    """Elements of a page; AssertionError where tags are not closed in their order."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs), (tag, attrs)
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        assert "svg" in self.open, f"<{tag}/> is not HTML"
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def ids(self):
        return [attrs["id"] for _, attrs in self.tags if "id" in attrs]

    def sections(self):
        return [attrs["id"] for tag, attrs in self.tags if tag == "section"]


@pytest.fixture(scope="module")
def pages(reports):
    return {name: Page((folder / "report.html").read_text(encoding="utf-8")) for name, folder in reports.items()}


@pytest.mark.parametrize("name", NAMES)
def test_page_is_alone(pages, reports, name):
    """No script, nothing fetched, and the page itself forbids both."""
    page = pages[name]
    assert not {"script", "link", "iframe", "img", "object", "embed", "base", "form"} & {tag for tag, _ in page.tags}
    for tag, attrs in page.tags:
        assert not [attribute for attribute in attrs if attribute.startswith("on")], (tag, attrs)
        for attribute in FETCHING:
            assert (attrs.get(attribute) or "#").startswith("#"), (tag, attrs)
        for found in re.findall(r"url\(([^)]*)\)", " ".join(str(value) for value in attrs.values())):
            assert found.startswith("#"), (tag, attrs)
    style = re.search(r"<style>(.*?)</style>", (reports[name] / "report.html").read_text(encoding="utf-8"), re.DOTALL)
    assert "url(" not in style[1]
    assert "@import" not in style[1]
    policy = next(attrs["content"] for tag, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy


@pytest.mark.parametrize("name", NAMES)
def test_ids_are_unique_and_resolve(pages, name):
    page = pages[name]
    ids = page.ids()
    assert [one for one, count in Counter(ids).items() if count > 1] == []
    meant = [attrs["href"][1:] for _, attrs in page.tags if attrs.get("href")]
    meant += [attrs["aria-labelledby"] for _, attrs in page.tags if "aria-labelledby" in attrs]
    meant += [
        found
        for _, attrs in page.tags
        for value in attrs.values()
        for found in re.findall(r"url\(#([^)]*)\)", str(value))
    ]
    assert len(meant) > 20
    assert {one for several in meant for one in several.split()} <= set(ids)


@pytest.mark.parametrize("name", NAMES)
def test_figures_are_accessible(pages, name):
    """Each has a title, a description, a caption with n and interval, and a table with heads."""
    page = pages[name]
    pictures = [attrs for tag, attrs in page.tags if tag == "svg" and "viewbox" in attrs and "style" in attrs]
    tags = Counter(tag for tag, _ in page.tags)
    assert len(pictures) == tags["figure"] == tags["figcaption"] >= 6
    assert all(attrs["role"] == "img" and attrs["aria-labelledby"] for attrs in pictures)
    assert tags["details"] >= tags["figure"]
    assert all("scope" in attrs for tag, attrs in page.tags if tag == "th")
    strips = [attrs for tag, attrs in page.tags if tag == "svg" and "height" in attrs]
    assert all(re.match(r"\d+ layers: ", attrs["aria-label"]) for attrs in strips)


def test_verdicts_come_first(pages, reports):
    assert pages["recall"].sections()[:2] == ["verdicts", "arms"]
    text = " ".join(pages["recall"].text)
    assert text.index("Does one attention layer rescue") < text.index("5 claims:") < text.index("hybrid beats pure")
    words = [
        attrs["class"].split()[1] for tag, attrs in pages["recall"].tags if attrs.get("class", "").startswith("badge")
    ]
    assert words == ["supported", "supported", "supported", "refuted", "refuted"]
    assert "5 claims: 3 supported and 2 refuted. 2 of 120 trials have no result" in text


def test_sections_without_data_are_left_out_and_said(pages):
    assert "grid" not in pages["recall"].sections()
    assert "knockouts" not in pages["curves"].sections()
    assert "failed" not in pages["curves"].sections()
    assert "optimum" in pages["curves"].sections()
    out = " ".join(pages["curves"].text).partition("Left out")[2]
    assert "no trial has knock-outs" in out
    assert "every trial finished, and none diverged" in out
    assert "steps to solve are left out" in " ".join(pages["curves"].text).lower()


def test_failures_are_told(pages):
    text = " ".join(pages["recall"].text)
    assert text.count("it crashed: RuntimeError: out of memory") == 2
    assert "step 700" in text


def test_hostile_names_are_text(pages, reports):
    """They are shown, as text; what nobody would see is replaced; no file leaves the folder."""
    page = pages["hostile"]
    text = "".join(page.text)
    for name in ("<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "</style></svg></title>]]>", "模型"):
        assert name in text
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e\ud800-\udfff]", text)
    assert all(re.fullmatch(r"[\w.-]+", path.name) for path in reports["hostile"].rglob("*"))
    assert all(re.fullmatch(r"[a-z0-9-]+", one) or one.rsplit("-", 1)[1].isalnum() for one in page.ids())


def test_nothing_has_finished(tmp_path):
    """Only what is missing is told."""
    made = synthetic.study([synthetic.arm("a", "M"), synthetic.arm("b", "A")])
    write(synthetic.results(made, lambda *_: "it has not finished"), tmp_path)
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert page.sections() == ["arms", "failed", "reproduce", "left-out"]
    assert "40 of 40 trials have no result" in " ".join(page.text)
    assert list((tmp_path / "figures").iterdir()) == []


def test_one_seed_one_rate(tmp_path):
    """No interval, no difference, no rate to choose: said, not shown as if."""
    made = synthetic.study([synthetic.arm("a", "MA"), synthetic.arm("b", "MM")], seeds=1, lr=(1e-3,), eval=())
    write(synthetic.results(made, synthetic.solved_or_not), tmp_path)
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert not {"rates", "differences", "optimum"} & set(page.sections())
    text = " ".join(page.text)
    assert "one learning rate (0.001) was tried" in text
    assert "inf" not in text.split()
    assert "nan" not in text.lower().split()


@pytest.mark.deep
def test_a_large_study_stays_small(tmp_path):
    write(synthetic.large(), tmp_path)
    assert (tmp_path / "report.html").stat().st_size < 5 << 20
    Page((tmp_path / "report.html").read_text(encoding="utf-8"))

# SPDX-License-Identifier: BSD-3-Clause
"""The page and the plot: what the file holds, and what a browser makes of it."""

import base64
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from kit.chromium import Page, open_browser

import lstm_fused
from lstm_fused import FusedLSTM

TEXT = 'The "quick" brown fox\n  jumps (over)\n\nthe lazy dog </script><!-- & 𝄞 é\n' * 4
SHOWN = "view.bytes !== null && document.querySelectorAll('#readout span').length > 6"


def text_trace(**options: int) -> lstm_fused.Trace:
    torch.manual_seed(0)
    module = FusedLSTM(3, 9, num_layers=2, **options)
    return lstm_fused.trace(module, torch.randn(len(TEXT), 2, 3))


def content_of(path: Path) -> tuple[dict, list[bytes]]:  # type: ignore[type-arg]
    text = path.read_text("utf-8")
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert data is not None
    blocks = re.findall(r'<script type="text/plain" id="block-\d+">(.*?)</script>', text)
    return json.loads(data[1]), [zlib.decompress(base64.b64decode(block)) for block in blocks]


def test_values_within_half_a_level(tmp_path: Path) -> None:
    trace = text_trace(proj_size=4)
    trace.save_html(tmp_path / "page.html", labels=TEXT, row=1)
    content, blocks = content_of(tmp_path / "page.html")
    assert [layer["name"] for layer in content["layers"]] == ["l0", "l1"]
    for layer in content["layers"]:
        states = trace[layer["name"]].row(1)
        for tensor, series in layer["tensors"].items():
            values = getattr(states, tensor).double().t()
            low, high = (torch.tensor(series[end]).double().unsqueeze(1) for end in ("low", "high"))
            levels = torch.frombuffer(bytearray(blocks[series["block"]]), dtype=torch.uint8)
            shown = low + levels.view(values.shape).double() / 255 * (high - low)
            assert (shown - values).abs().max() <= float((high - low).max()) * (0.5 / 255 + 1e-3)
            assert len(series["strength"]) == len(series["period"]) == len(values)
    assert content["labels"] == TEXT
    assert "inside double quotes" in [feature["name"] for feature in content["features"]]


def test_nothing_is_loaded_from_anywhere(tmp_path: Path) -> None:
    text_trace().save_html(tmp_path / "page.html", labels=TEXT, title="A <b> & {{data}}")
    text = (tmp_path / "page.html").read_text("utf-8")
    assert "https:" not in text and "http:" not in text
    assert not re.search(r"\bsrc=|@import|\burl\(", text)
    assert "default-src 'none'" in text
    assert "<h1>A &lt;b&gt; &amp; {{data}}</h1>" in text
    assert TEXT.count("</script>") and text.count("</script>") == text.count("<script")


def test_labels_and_features_of_ones_own(tmp_path: Path) -> None:
    torch.manual_seed(0)
    trace = lstm_fused.trace(FusedLSTM(3, 5, batch_first=True), torch.randn(2, 6, 3))
    years = range(1700, 1706)
    trace.save_html(tmp_path / "page.html", years, features={"rise": torch.arange(6)})
    content, _ = content_of(tmp_path / "page.html")
    assert content["labels"] == [str(year) for year in years] and not content["isText"]
    assert [feature["name"] for feature in content["features"]] == ["rise"]
    trace.save_html(tmp_path / "page.html")
    assert content_of(tmp_path / "page.html")[0]["labels"] == list("012345")


def test_values_that_are_not_finite(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, x = FusedLSTM(3, 5), torch.randn(6, 1, 3)
    x[3] = float("nan")
    with pytest.raises(ValueError, match="got NaN or infinity in l0, at step 3 first"):
        lstm_fused.trace(module, x).save_html(tmp_path / "page.html", "abcdef")


def test_plots(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    trace = text_trace(proj_size=4)
    figure = trace.plot("l1", units=[3, 0], tensors="fch")
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert titles == ["forget gate f", "cell state c", "output h"]
    image = figure.axes[0].images[0]
    wanted = trace["l1"].row(0).f.t()[[3, 0]]
    assert torch.equal(torch.tensor(image.get_array().data), wanted.double())
    figure.savefig(tmp_path / "plot.png")
    assert len(trace.plot("l0", row=1).axes) == 12  # six maps and their scales


@pytest.fixture(scope="module")
def browser() -> Iterator[Page]:
    with open_browser() as page:
        yield page


@pytest.fixture
def page(browser: Page, tmp_path: Path) -> Page:
    text_trace().save_html(tmp_path / "page.html", labels=TEXT)
    return show(browser, tmp_path / "page.html")


def show(browser: Page, path: Path, width: int = 1280, height: int = 900) -> Page:
    browser.problems.clear()
    browser.requests.clear()
    browser.resize(width, height)
    browser.open(path)
    browser.wait_for(SHOWN)
    return browser


def texts(selector: str) -> str:
    return f"[...document.querySelectorAll('{selector}')].map(node => node.textContent)"


def test_it_opens_without_a_complaint(page: Page) -> None:
    assert page.problems == []
    assert len(page.requests) == 1 and page.requests[0].startswith("file:")
    shown = page.evaluate("document.querySelector('#sequence').textContent")
    assert shown.replace("↵", "\n") == TEXT
    assert page.evaluate("document.querySelectorAll('#units [role=option]').length") == 9
    found = page.evaluate(texts("#findings span"))
    assert "inside double quotes" in found and "indentation" in found


def test_colours_are_those_of_the_values(page: Page) -> None:
    page.evaluate("show({layer: 1, tensor: 'f', unit: 4})")
    page.wait_for("document.querySelector('#headline').textContent === 'Unit 4, forget gate'")
    gate = text_trace()["l1"].row(0).f[:, 4]
    step = int(gate.argmax())
    value = page.evaluate(f"valueOf(seriesOf(), 4, view.bytes[4 * DATA.steps + {step}])")
    assert value == pytest.approx(float(gate[step]), abs=0.003)
    page.wait_for("sequence.spans.every(span => span.style.backgroundColor)")
    colours = page.evaluate("sequence.spans.map(span => span.style.backgroundColor)")
    assert len(set(colours)) > 10
    level = round(float(gate[step]) * 255)
    near = page.evaluate(f"[{level - 1}, {level}, {level + 1}].map(level => palette.css[level])")
    parts = [re.findall(r"\d+", colour) for colour in near]
    assert re.findall(r"\d+", colours[step]) in parts


def test_units_come_in_every_order(page: Page) -> None:
    for tensor in "ifgoch":
        page.evaluate(f"show({{tensor: '{tensor}'}})")
        orders = page.evaluate("ordersOf(layerOf(), state.tensor).map(order => order.id)")
        assert {"periodic", "saturated", "memory", "r0"} <= set(orders)
        for order in orders:
            page.evaluate(f"show({{order: '{order}'}})")
            page.wait_for(f"document.querySelector('#order').value === '{order}'")
            shown = page.evaluate(texts("#units span"))
            assert sorted(map(int, shown)) == list(range(9))
    page.evaluate("show({tensor: 'c', order: 'r0'})")
    strengths = page.evaluate("units.order.map(u => Math.abs(seriesOf().correlations[0][u]))")
    assert strengths == sorted(strengths, reverse=True)
    assert page.evaluate("state.unit") == page.evaluate("units.order[0]")


def test_by_keyboard_alone(page: Page) -> None:
    page.evaluate("document.querySelector('#sequence').focus()")
    for key in ("ArrowRight", "ArrowRight", "ArrowRight", "ArrowLeft"):
        page.press(key)
    told = "document.querySelector('#sequence').getAttribute('aria-valuetext')"
    assert page.evaluate(told).startswith(f"step 3 of {len(TEXT)}, e in The, ")
    page.press("ArrowDown")
    assert page.evaluate("DATA.labels[state.at]") == "j"  # the third sign of the second line
    page.press("ArrowUp")
    assert page.evaluate("state.at") == 2
    page.press("End")
    assert page.evaluate("state.at") == len(TEXT) - 1
    assert "line end" in page.evaluate(told)
    page.evaluate("document.querySelector('#units').focus()")
    for key, place in (("Home", 0), ("ArrowRight", 1), ("End", 8), ("ArrowLeft", 7)):
        page.press(key)
        page.wait_for(f"units.chosen === units.order[{place}] && view.bytes !== null")
    active = page.evaluate("document.querySelector('#units').getAttribute('aria-activedescendant')")
    selected = page.evaluate("document.querySelector('[aria-selected=true]').id")
    assert active == selected == f"unit-{page.evaluate('state.unit')}"


def test_by_mouse(page: Page) -> None:
    page.click("#findings li:last-child button")
    page.wait_for("document.querySelector('#findings li:last-child button').ariaPressed === 'true'")
    page.click("#tensors label:nth-of-type(2) input")
    page.wait_for("state.tensor === 'f'")
    page.evaluate("sequence.spans[7].id = 'seventh'")
    page.click("#seventh")
    page.wait_for("document.querySelector('#readout b').textContent === '8'")
    page.click("#units [role=option]:nth-child(3)")
    page.wait_for("state.unit === units.order[2]")
    page.click("#next")
    page.wait_for("state.unit === units.order[3]")
    assert page.problems == []


def test_everything_has_a_name(page: Page) -> None:
    nodes = page.call("Accessibility.getFullAXTree")["nodes"]
    roles = ("button", "slider", "listbox", "option", "combobox", "radio", "spinbutton", "image")
    asked = [node for node in nodes if node.get("role", {}).get("value") in roles]
    assert {node["role"]["value"] for node in asked} >= {"button", "slider", "listbox", "radio"}
    nameless = [node["role"] for node in asked if not node.get("name", {}).get("value")]
    assert nameless == []


def test_text_keeps_its_contrast(page: Page) -> None:
    """At least 4.5 to 1 on every colour (WCAG 2.2, 1.4.3), in both schemes."""
    contrast = """(() => {
      const linear = (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
      const light = (rgb) => rgb.map((v) => linear(v / 255))
        .reduce((sum, v, k) => sum + v * [0.2126, 0.7152, 0.0722][k], 0);
      const numbers = (text) => text.match(/[\\d.]+/g).slice(0, 3).map(Number);
      const ink = light(numbers(getComputedStyle(document.querySelector('#sequence')).color));
      return Math.min(...palette.css.map(numbers).map(light)
        .map((paper) => (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05)));
    })()"""
    assert page.evaluate(contrast) >= 4.5
    page.resize(1280, 900, dark=True)
    page.wait_for("matchMedia('(prefers-color-scheme: dark)').matches && palette.rgb[3 * 127] < 99")
    assert page.evaluate(contrast) >= 4.5


@pytest.mark.parametrize("width", [320, 390, 800, 1280])
def test_no_width_scrolls_sideways(browser: Page, tmp_path: Path, width: int) -> None:
    text_trace().save_html(tmp_path / "page.html", labels=TEXT)
    page = show(browser, tmp_path / "page.html", width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_words_projections_and_one_step(browser: Page, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = FusedLSTM(3, 5, proj_size=2, bidirectional=True)
    trace = lstm_fused.trace(module, torch.randn(4, 1, 3))
    trace.save_html(tmp_path / "page.html", ["a", "<b>", "", "word"])
    page = show(browser, tmp_path / "page.html")
    page.evaluate("show({layer: 1, tensor: 'h', unit: 9})")
    page.wait_for("document.querySelector('#headline').textContent === 'Output 1, output'")
    assert page.problems == []
    one = lstm_fused.trace(FusedLSTM(3, 1), torch.randn(1, 1, 3))
    one.save_html(tmp_path / "one.html")
    assert show(browser, tmp_path / "one.html").problems == []


def test_a_page_that_cannot_be_shown_says_why(browser: Page, tmp_path: Path) -> None:
    text_trace().save_html(tmp_path / "page.html", labels=TEXT)
    whole = (tmp_path / "page.html").read_text("utf-8")
    old = whole.replace('"use strict";', '"use strict"; delete window.DecompressionStream;')
    (tmp_path / "old.html").write_text(old, "utf-8")
    browser.resize(1280, 900)
    browser.open(tmp_path / "old.html")
    browser.wait_for("document.querySelector('#headline').textContent.includes('too old')")


def test_long_sequences_of_many_units(browser: Page, tmp_path: Path) -> None:
    torch.manual_seed(0)
    text = (TEXT * 50)[:10_000]
    trace = lstm_fused.trace(FusedLSTM(8, 512), torch.randn(len(text), 1, 8))
    trace.save_html(tmp_path / "page.html", labels=text)
    page = show(browser, tmp_path / "page.html")
    assert page.evaluate("document.querySelectorAll('#units [role=option]').length") == 512
    page.evaluate("show({unit: 511}).then(() => moveTo(9999, true))")
    page.wait_for("document.querySelector('#readout b').textContent === '10000'")
    assert page.evaluate("sequence.box.scrollTop > 1000")
    assert page.problems == []

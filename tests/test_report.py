"""femur_tf.report: one page, whole in itself."""

import base64
import re
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest

from femur_tf import metrics, report
from femur_tf.volume import Volume

NAN = float("nan")


@pytest.fixture
def written(tmp_path):
    """Return a function that writes a page and gives its text."""

    def write(page):
        path = tmp_path / "reports" / "page.html"
        page.write(path)
        return path.read_bytes().decode("ascii")  # the same in any locale

    return write


def _cells(text):
    """Return the rows of the page's tables as lists of texts."""
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", text)
    return [re.findall(r"<t[hd]>(.*?)</t[hd]>", row) for row in rows]


def test_a_table_ends_in_mean_and_deviation(written):
    page = report.Page("Scores")
    page.add_table(["case", "Dice", "side", "parts"], [["a", 0.8, "left", 2], ["b", 0.9, "right", 1]])
    assert _cells(written(page)) == [
        ["case", "Dice", "side", "parts"],
        ["a", "0.800", "left", "2"],
        ["b", "0.900", "right", "1"],
        ["mean +- sd", "0.850 +- 0.050", "", "1.500 +- 0.500"],
    ]


@pytest.mark.parametrize(
    ("column", "mean"),
    [
        ([0.5, NAN], "0.500 +- 0.000"),  # an undefined score does not count
        ([NAN, NAN], "nan"),
        ([np.float32(0.25), np.int64(1)], "0.625 +- 0.375"),
        ([True, False], ""),
        ([0.5, "none"], ""),
    ],
)
def test_means_are_of_the_numbers_known(written, column, mean):
    page = report.Page("Scores")
    page.add_table(["case", "value"], [["a", column[0]], ["b", column[1]]])
    assert _cells(written(page))[-1] == ["mean +- sd", mean]


def test_an_empty_table_is_its_header(written):
    page = report.Page("Scores")
    page.add_table(["case"], [])
    assert _cells(written(page)) == [["case"]]


def test_a_table_may_do_without_its_mean(written):
    page = report.Page("Trials")
    page.add_table(["trial", "score"], [[1, 0.5]], mean=False)
    assert _cells(written(page)) == [["trial", "score"], ["1", "0.500"]]


def test_a_case_names_its_numbers(written):
    mask, reference = np.zeros((10, 10, 10), bool), np.zeros((10, 10, 10), bool)
    mask[:5], reference[:10] = True, True
    page = report.Page("Cases")
    page.add_case("hip_01", Volume(np.ones(mask.shape), np.diag([2, 2, 2, 1])), mask, reference)
    page.add_case("unknown", Volume(np.ones(mask.shape), np.eye(4)), mask, None)
    text = written(page)
    assert "hip_01: mask 4.0 cm3, reference 8.0 cm3, Dice 0.667" in text
    assert "unknown: mask 0.5 cm3<" in text


def test_a_roc_names_its_point(written):
    roc = metrics.roc(np.array([0.875, 0.5, 0.25]), np.array([True, True, False]))
    page = report.Page("ROC")
    page.add_roc(roc, 1.0, 0.75)
    assert "AUC 1.0000; at cut-off 0.7500 sensitivity 0.500, specificity 1.000" in written(page)


def test_a_page_needs_nothing_from_elsewhere(written):
    page = report.Page("All")
    page.add_heading("One")
    page.add_text("Two")
    page.add_commands(["python -m a", "python -m b"])
    page.add_case("c", Volume(np.ones((3, 3, 3)), np.eye(4)), np.ones((3, 3, 3), bool), None)
    text = written(page)
    sources = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert len(sources) == 1
    kind, _, data = sources[0].partition(",")
    assert kind == "data:image/png;base64"
    assert base64.b64decode(data, validate=True).startswith(b"\x89PNG")
    assert "<script" not in text
    assert "http" not in text
    assert "<pre>python -m a\npython -m b</pre>" in text


def test_text_is_escaped_and_comes_back(written):
    nasty = '<script>alert("Hüfte & Bein")</script>'
    page = report.Page(nasty)
    page.add_heading(nasty)
    page.add_text(nasty)
    page.add_commands([nasty])
    page.add_table([nasty], [[nasty]])
    page.add_case(nasty, Volume(np.ones((3, 3, 3)), np.eye(4)), np.ones((3, 3, 3), bool), None)
    text = written(page)
    assert "<script" not in text
    found = []
    parser = HTMLParser()
    parser.handle_data = found.append
    parser.feed(text)
    assert found.count(nasty) == 8  # the title and the case twice


def test_a_page_replaces_an_earlier_one_whole(written, tmp_path):
    written(report.Page("first"))
    assert "second" in written(report.Page("second"))
    assert [path.name for path in (tmp_path / "reports").iterdir()] == ["page.html"]


@pytest.mark.slow
def test_matplotlib_waits_for_the_first_picture():
    code = "import sys, femur_tf.report; sys.exit('matplotlib' in sys.modules or 'tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

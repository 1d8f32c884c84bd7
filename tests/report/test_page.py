import json
import re
import sys
from html.parser import HTMLParser

import pytest

from weightbank.errors import DataError, StoreError
from weightbank.report import results
from weightbank.report.charts import Bar, bars, lines
from weightbank.report.page import FOLDED, Section, page, section_of
from weightbank.report.pictures import picture_of, sweep_of
from weightbank.report.results import Result, kind_of, load_result
from weightbank.report.tables import Table, tables_of, text_of

EVIL = "<script>alert(1)</script>\"'&<img src=x onerror=alert(1)>$\\frac{"


class Reader(HTMLParser):
    """Elements with their attributes, and all visible text; complains about tags that do not match."""

    VOID = ("meta", "img", "br")

    def __init__(self, text):
        super().__init__()
        self.elements, self.words, self.open = [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self):
        return " ".join(self.words)


def result(document, name="result.json"):
    return Result(name, kind_of(document), document)


def sweep_document(found):
    return {"scores": "ggn", **found.to_dict(), "files": []}


def law(name, nll):
    return {"name": name, "rows": 3, "nll": {"mean": nll, "stderr": 0.0123}, "disk": 20_480}


def test_a_sweep_becomes_its_figure_and_all_its_numbers(found):
    read = Reader(page([section_of(result(sweep_document(found)))]))
    assert "svg" in [tag for tag, _ in read.elements]
    for row in found.rows:
        assert f"{row.accuracy.mean:,.4f} ± {row.accuracy.stderr:,.4f} (n = 300)" in read.text
        assert text_of(row.total_write_cycles) in read.text
    assert "What to see" in read.text
    back = sweep_of(json.loads(json.dumps(sweep_document(found))))
    assert [(row.method, row.accuracy.mean, row.low) for row in back.rows] == [
        (row.method, row.accuracy.mean, row.low) for row in found.rows
    ]


def test_the_page_loads_nothing_and_runs_nothing(found):
    documents = [sweep_document(found), {"laws": [law("a", 0.2), law("b", 0.3)], "verdict": "fine"}]
    text = page([section_of(result(document)) for document in documents])
    read = Reader(text)
    assert not {tag for tag, _ in read.elements} & {"script", "link", "iframe", "object", "embed", "img", "base"}
    for _, attributes in read.elements:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "xlink:href"):
            assert attributes.get(name, "#").startswith(("#", "data:image/png"))
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)
    assert "prefers-color-scheme:dark" in text
    assert "default-src 'none'" in text


def test_every_text_of_a_stranger_is_escaped(found):
    rows = [{**row, "method": EVIL + str(place // 5)} for place, row in enumerate(found.to_dict()["rows"])]
    sweep = {**sweep_document(found), "task": EVIL, EVIL: EVIL, "rows": rows}
    laws = {"laws": [law(EVIL, 0.2), {**law("b", 0.3), EVIL: {EVIL: [EVIL]}}], "verdict": EVIL}
    for document in (sweep, laws):
        section = section_of(result(document, EVIL))
        assert len(section.pictures) == 1
        text = page([section], title=EVIL)
        read = Reader(text)
        assert not {tag for tag, _ in read.elements} & {"script", "img"}
        assert not [name for _, attributes in read.elements for name in attributes if name.startswith("on")]
        assert "<script>alert(1)</script>" in read.text  # it is there, as text


def test_control_characters_and_long_texts_are_cut(found):
    document = {"laws": [law("a\0b\x1b", 0.2)], "verdict": "x" * 10_000}
    text = page([section_of(result(document))])
    assert "\0" not in text
    assert "\x1b" not in text
    assert "x" * 2001 not in text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[1, 2]", "a JSON list; wanted the object"),
        ("{}", "it has nothing"),
        ('{"name": "left-pad", "version": "1.0"}', "it has 'name', 'version'"),
        ("not json", "not a JSON document"),
        ('{"rule": NaN, "epochs": 1}', "NaN is no JSON number"),
        ('{"rule": 1, "epochs": ' + "[" * 100_000, "not a JSON document"),
        ('{"rule": 1, "epochs": ' + "[" * 20 + "]" * 20 + "}", "nested more than 12 deep"),
    ],
)
def test_foreign_json_is_refused_with_a_reason(tmp_path, text, said):
    path = tmp_path / "foreign.json"
    path.write_text(text)
    with pytest.raises(DataError, match=re.escape(said)):
        load_result(path)


def test_files_that_are_too_large_or_missing_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "large.json"
    with path.open("wb") as file:
        file.truncate(results.LIMIT + 1)
    with pytest.raises(DataError, match="a result has at most"):
        load_result(path)
    path.write_text(json.dumps({"rule": "", "epochs": [0] * 1000}))
    assert load_result(path).kind.command == "posterior plan --rule paper"
    monkeypatch.setattr(results, "MOST_ITEMS", 1000)
    with pytest.raises(DataError, match="values; a result has at most"):
        load_result(path)
    with pytest.raises(StoreError, match="nothing"):
        load_result(tmp_path / "nothing")


def test_rows_with_nothing_in_common_do_not_make_a_square_table():
    many = 400
    (table,) = tables_of({"rows": [{f"k{number}": number} for number in range(many)]})
    assert sum(len(row) for row in table.rows) <= 3 * many  # a square one has 160,000
    assert {row[2] for row in table.rows} == {str(number) for number in range(many)}


def test_numbers_that_are_not_numbers_cost_the_figure_not_the_page(found):
    document = json.loads(json.dumps(sweep_document(found)))
    document["rows"][0]["accuracy"]["mean"] = None
    section = section_of(result(document))
    assert section.pictures == ()
    assert "not a finite number" in section.notes[0]
    assert len(section.tables) >= 2
    for broken in ({"laws": 3, "verdict": []}, {"laws": [3], "verdict": 0}, {"laws": [{"nll": 3}], "verdict": {}}):
        assert section_of(result(broken)).pictures == ()
        Reader(page([section_of(result(broken))]))


def test_without_matplotlib_the_page_has_tables_and_says_so(found, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    section = section_of(result(sweep_document(found)))
    read = Reader(page([section]))
    assert "svg" not in [tag for tag, _ in read.elements]
    assert "pip install weightbank[report]" in read.text
    assert "published" in read.text


def test_the_first_column_of_rows_is_their_name():
    facts, table = tables_of({"laws": [law("a", 0.2), law("b", 0.25)], "verdict": "b loses"})
    assert facts == Table("", ("", "value"), (("verdict", "b loses"),))
    assert table.columns == ("name", "rows", "nll", "disk")
    assert table.rows[1] == ("b", "3", "0.250 ± 0.012", "20,480 (20.5 kB)")


def test_wide_tables_are_turned_over():
    row = {"name": "a", **{f"metric_{number}": number for number in range(9)}}
    (table,) = tables_of({"laws": [row, {**row, "name": "b"}]})
    assert table.columns == ("name", "a", "b")
    assert table.rows[3] == ("metric 3", "3", "3")


def test_a_history_has_a_row_for_each_place():
    (table,) = tables_of({"history": [[0, {"a": 0.5, "b": 1}], [20, {"a": 0.75, "b": 2}]]})
    assert table.columns == ("at", "a", "b")
    assert table.rows == (("0", "0.5", "1"), ("20", "0.75", "2"))


def test_values_are_written_for_people():
    assert text_of(None) == "–"
    assert text_of(True) == "yes"
    assert text_of(12_345) == "12,345"
    assert text_of(12_345, "row bytes") == "12,345 (12.3 kB)"
    assert text_of(1 / 3) == "0.33333"
    assert text_of([]) == text_of({}) == "none"
    assert text_of({"mean": 0.9213, "stderr": 0.0021, "n": 9, "min": 0.9, "max": 0.95, "values": []}) == (
        "0.9213 ± 0.0021 (n = 9, 0.9 to 0.95)"
    )
    assert text_of({"mean": 0.5, "stderr": None, "n": 1}) == "0.5 (n = 1)"


def test_every_draw_of_an_estimate_is_shown_but_not_a_single_one_twice():
    (facts,) = tables_of({"chips": {"mean": 2.0, "stderr": 1.0, "n": 2, "values": [1.0, 3.0]}})
    assert facts.rows == (("chips", "2.0 ± 1.0 (n = 2)"), ("chips: each", "1, 3"))
    (facts,) = tables_of({"one": {"mean": 2.0, "stderr": None, "n": 1, "values": [2.0]}})
    assert facts.rows == (("one", "2 (n = 1)"),)


def test_long_tables_and_settings_are_folded_and_results_come_first():
    rows = tuple((str(number), "1") for number in range(FOLDED + 1))
    tables = (Table("settings", ("", "value"), (("a", "1"),)), Table("timings", ("", "value"), rows))
    text = page([Section("title", tables=tables)])
    assert text.index("<summary>timings: 25 rows") < text.index("<summary>settings: 1 rows")
    with pytest.raises(DataError, match="wanted at least one"):
        page([])


def test_bars_show_each_value_with_its_error():
    figure = bars([Bar("a", 1.0, "1.00", 0.1), Bar("$b$", 3.0, "3.00", 0.2)], "things")
    axes = figure.axes[0]
    assert [patch.get_width() for patch in axes.patches] == [1.0, 3.0]
    assert [text.get_text() for text in axes.texts] == ["1.00", "3.00"]
    near = bars([Bar("a", 0.98, "", 0.01), Bar("b", 0.99, "", 0.01)], "things").axes[0]
    assert not near.patches  # bars from zero would look alike
    low, high = near.get_xlim()
    assert low < 0.97
    assert high > 1.0
    with pytest.raises(DataError, match="nothing to draw"):
        bars([], "things")


def test_lines_are_those_given_and_named_apart():
    figure = lines([0, 1, 2], {"a": [1, 2, 3.0], "b": [1, 2, 3.01]}, "steps", "score", level=(2.0, "wanted"))
    drawn = [list(line.get_ydata()) for line in figure.axes[0].lines]
    assert drawn[:2] == [[1, 2, 3.0], [1, 2, 3.01]]
    assert {text.get_text() for text in figure.axes[0].texts} == {"wanted", "a", "b"}
    with pytest.raises(DataError, match="equally many"):
        lines([0, 1], {"a": [1.0]}, "", "")


@pytest.mark.parametrize(
    ("document", "numbers"),
    [
        (
            {
                "experiment": "x",
                "plan": "p",
                "clean": 0.9,
                "max_drop": 0.1,
                "quantile_05": 0.7,
                "within": 0.5,
                "chips": {"mean": 0.8, "stderr": 0.1, "n": 2, "values": [0.9, 0.7]},
            },
            "promised",
        ),
        (
            {
                "committed": True,
                "before": {"a": {"value": 0.5}},
                "after": {"a": {"value": 0.6}},
                "history": [[0, {"a": 0.5}], [2, {"a": 0.6}]],
            },
            "steps",
        ),
        (
            {"iterates": 3, "disk": {"rows": 5000, "commits": 0}, "working": {}, "memory": {}, "shortage": {}},
            "5.0 kB",
        ),
        ({"occupancy": [1, 2, 3], "tenants": [], "packing": 1.3, "positions": 6}, "2 networks"),
    ],
)
def test_other_kinds_have_their_figure(document, numbers):
    picture = picture_of(result(document))
    assert picture is not None
    assert numbers in picture.svg

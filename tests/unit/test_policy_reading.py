"""YAML from strangers: bounded, unsurprising, and every key and value with its place."""

from __future__ import annotations

import time

import pytest
import yaml

from controller.policy import positions
from controller.policy.positions import MAX_BYTES, MAX_DEPTH, MAX_NODES, Position, read_yaml

SAMPLES = {
    "flow": "a: {b: 1,\n c: [2, é, x: 5]}\nüb: 3\n",
    "block": "# comment\na:\n  - b: 1\n    c:\n  - |\n    text\n    more\nd: 'q''q'\n",
    "empty": "a: ''\nb:\n  c: {}\nd: []\ne: ''\n",
    "bare": "- 1\n-\n- - 2\n  - {}\n",
}


def messages(text):
    return [str(problem) for problem in read_yaml(text, "f.yaml").problems]


@pytest.mark.parametrize("text", SAMPLES.values(), ids=SAMPLES.keys())
def test_the_fast_parser_marks_the_same_places_as_the_one_in_python(text, monkeypatch):
    if positions.LOADER is yaml.SafeLoader:
        pytest.skip("PyYAML was built without libyaml")
    fast = read_yaml(text, "f.yaml")
    monkeypatch.setattr(positions, "LOADER", yaml.SafeLoader)
    slow = read_yaml(text, "f.yaml")
    assert fast.problems == slow.problems == []
    assert (fast.data, fast.values, fast.keys) == (slow.data, slow.values, slow.keys)


def test_an_absent_value_has_its_key_located():
    document = read_yaml("a:\nb: {c: , d: }\n", "f.yaml")
    assert document.data == {"a": None, "b": {"c": None, "d": None}}
    assert document.locate(("b", "d"), at_key=True) == Position(2, 10)


def test_every_key_and_value_has_its_line_and_column():
    document = read_yaml(SAMPLES["flow"], "f.yaml")
    assert document.data == {"a": {"b": 1, "c": [2, "é", {"x": 5}]}, "üb": 3}
    assert document.values["a", "c", 2, "x"] == Position(2, 15)
    assert document.keys["üb",] == Position(3, 1)


def test_what_is_not_in_the_text_is_located_at_what_encloses_it():
    document = read_yaml("a:\n  b: {c: 1}\n", "f.yaml")
    assert document.locate(("a", "b", "missing")) == Position(2, 3)
    assert document.locate(("missing",)) == Position(1, 1)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("on", "on"),
        ("12:30", "12:30"),
        ("1_000", "1_000"),
        ("2024-13-45", "2024-13-45"),
        ("010", 10),
        ("0x10", "0x10"),
        ("'7'", "7"),
        ("1e-3", 0.001),
        ("True", True),
        ("~", None),
        ("9" * 5000, "9" * 5000),
    ],
)
def test_scalars_mean_what_they_mean_to_an_editor_of_yaml_1_2(text, value):
    data = read_yaml(f"a: {text}\n", "f.yaml").data["a"]
    assert (data, type(data)) == (value, type(value))


def test_every_key_is_text():
    assert list(read_yaml("1: a\non: b\nnull: c\n<<: d\n", "f.yaml").data) == [
        "1",
        "on",
        "null",
        "<<",
    ]


def test_a_duplicate_key_is_refused_and_names_the_first():
    assert messages("a: 1\nb:\n  c: 1\n  c: {d: 1, d: 2}\na: 3\n") == [
        "f.yaml:4:3: b.c: duplicate key, first used in line 3",
        "f.yaml:5:1: a: duplicate key, first used in line 1",
    ]


def test_anchors_aliases_and_tags_are_refused_each_at_its_place():
    assert messages("a: &x {b: 1}\nc: *x\nd: !!python/name:os.system\n") == [
        "f.yaml:1:4: a: anchor `&x`: a policy has none, remove it",
        "f.yaml:2:4: c: alias `*x`: write the value out here",
        (
            "f.yaml:3:4: d: tag `tag:yaml.org,2002:python/name:os.system`: a policy has none, "
            "remove it"
        ),
    ]


def test_a_billion_laughs_are_refused_without_building_them():
    bomb = "a: &a [x, x]\n" + "".join(
        f"{chr(98 + level)}: &{chr(98 + level)} [*{chr(97 + level)}, *{chr(97 + level)}]\n"
        for level in range(24)
    )
    assert any("alias `*a`" in message for message in messages(bomb))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "f.yaml:1:1: the file is empty"),
        ("# nothing\n", "f.yaml:1:1: the file is empty"),
        ("---\na: 1\n---\nb: 1\n", "f.yaml:3:1: a policy is one document"),
        ("a: [1\nb: 2\n", "f.yaml:2:2: not YAML: while parsing a flow sequence"),
        ("a:\n\tb: 1\n", "f.yaml:2:1: not YAML: "),
        ("a: \x07\n", "f.yaml:1:4: character U+0007 is not allowed in YAML"),
        ("a:\r\n- \ud800\n", "f.yaml:2:3: character U+D800 is not allowed in YAML"),
        ("%YAML 9.9\n---\na: 1\n", "f.yaml:1:1: not YAML: "),
        ("? {a: 1}\n: 2\n", "f.yaml:1:3: a key must be plain text"),
        ("[" * 100_000, f"nested deeper than {MAX_DEPTH} levels"),
        ("- a\n" * (MAX_NODES + 1), f"more than {MAX_NODES} keys and values"),
        ("#" * (MAX_BYTES + 1), "f.yaml:1:1: larger than 1024 KiB"),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_place_and_soon(text, message):
    started_s = time.monotonic()
    (problem,) = messages(text)
    assert message in problem
    assert time.monotonic() - started_s < 5.0  # a generous bound: it takes 0.3 s at most


def test_a_tab_as_indentation_is_named_as_such():
    assert "a tab cannot indent YAML: use spaces" in messages("a:\n\tb: 1\n")[0]

"""A policy of several files, and of the parts for some hosts: what holds, and where it stands."""

import hashlib
import os
import time
from pathlib import Path

import pytest

from controller.cli.main import main
from controller.policy import compose
from controller.policy.load import PolicyError, check_hosts, load_policy, parse_policy
from controller.policy.render import policy_to_dict

FLEET = Path(__file__).parents[2] / "policies" / "fleet"
BASE = """\
version: 1
triton: {grpc: "127.0.0.1:8001"}
gpu: {devices: [0, 1]}
models:
  qa:
    objective: {latency: 60ms, percentile: 99}
    variants:
      a: {model: m_a, quality: 0.9}
      b: {model: m_b, quality: 0.8}
"""


@pytest.fixture
def write(tmp_path):
    def write(**files):
        for name, text in files.items():
            (tmp_path / f"{name}.yaml").write_text(text)
        return str(tmp_path / f"{next(iter(files))}.yaml")

    return write


def refusal(path, host="h"):
    with pytest.raises(PolicyError) as caught:
        load_policy(path, host=host)
    return [str(problem).replace(f"{Path(path).parent}/", "") for problem in caught.value.problems]


def test_mappings_merge_and_all_else_is_replaced_and_the_later_wins(write):
    path = write(
        top="include: [base.yaml, more.yaml]\nmodels: {qa: {objective: {latency: 80ms}}}\n",
        base=BASE,
        more="gpu: {devices: [2]}\nmodels: {qa: {objective: {latency: 70ms, percentile: 95}}}\n",
    )
    policy = load_policy(path)
    assert policy.gpu.devices == (2,)
    assert policy.models[0].objective.latency_s == 0.08
    assert policy.models[0].objective.percentile == 95.0
    assert [variant.name for variant in policy.models[0].variants] == ["a", "b"]


def test_entries_that_match_a_host_apply_in_their_order_after_all_files(write):
    path = write(
        top="include: [base.yaml]\nmode: act\nhosts:\n  Box-?: {interval: 30ms}\n"
        "  box-1: {interval: 40ms}\n",
        base=BASE + "hosts: {'box-*': {mode: advise, interval: 20ms}}\n",
    )
    told = {h: load_policy(path, host=h) for h in ("box-1", "BOX-2", "box-17", "lab")}
    assert {h: (p.mode.value, p.interval_s) for h, p in told.items()} == {
        "box-1": ("advise", 0.04),
        "BOX-2": ("advise", 0.03),
        "box-17": ("advise", 0.02),
        "lab": ("act", None),
    }


def test_null_removes_what_is_there_and_is_a_mistake_where_a_value_must_be(write):
    path = write(
        top="include: [base.yaml]\ngpu: null\nmodels: {qa: {variants: {b: null}}}\n", base=BASE
    )
    policy = load_policy(path)
    assert policy.gpu.devices is None
    assert [variant.name for variant in policy.models[0].variants] == ["a"]
    gone = write(top="include: [base.yaml]\ntriton: ~\nmodels: {qa: {min_quality: ~}}\n", base=BASE)
    missing, valueless = refusal(gone)
    assert missing == "top.yaml:1:1: triton: is missing: the server that is governed"
    assert valueless.startswith("top.yaml:3:15: models.qa.min_quality: has no value: write a num")


def test_every_problem_is_placed_where_its_value_was_written(write):
    path = write(
        top="include: [sub/more.yaml, base.yaml]\nmodels:\n  qa: {weight: heavy}\n"
        "hosts: {h: {moode: act}}\n",
        base=BASE.replace("0.8}", "good}").replace("60ms", "60"),
    )
    (Path(path).parent / "sub").mkdir()
    (Path(path).parent / "sub" / "more.yaml").write_text("interval: 5ms\nstability:\n  dwell: 1s\n")
    assert refusal(path) == [
        "top.yaml:3:16: models.qa.weight: must be a number, not 'heavy'",
        "top.yaml:4:13: moode: unknown key (did you mean mode?)",
        "sub/more.yaml:1:11: interval: must be between 20ms and 1s, not 5ms",
        "sub/more.yaml:3:3: stability.dwell: unknown key (did you mean min_dwell?)",
        "base.yaml:6:26: models.qa.objective.latency: 60 has no unit: write 60ms or 60s or 60m",
        "base.yaml:9:32: models.qa.variants.b.quality: must be a number, not 'good'",
    ]


def test_a_value_that_is_replaced_is_no_problem_any_more(write):
    path = write(top="include: [base.yaml]\ninterval: 50ms\n", base=BASE + "interval: {a: [1]}\n")
    assert load_policy(path).interval_s == 0.05


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "include: [none.yaml]",
            "top.yaml:1:11: include[0]: 'none.yaml' cannot be read: No such",
        ),
        (
            "include: [top.yaml]",
            "top.yaml:1:11: include[0]: 'top.yaml' is this file, or includes",
        ),
        ("include: [around.yaml]", "around.yaml:1:11: include[0]: 'top.yaml' is this file, or"),
        (
            "include: [pipe.yaml]",
            "top.yaml:1:11: include[0]: 'pipe.yaml' cannot be read: it is n",
        ),
        ("include: [.]", "top.yaml:1:11: include[0]: '.' cannot be read: it is not a plain file"),
        ("include: [/etc/hostname]", "top.yaml:1:11: include[0]: must be relative to this file"),
        ("include: [7]", "top.yaml:1:11: include[0]: must be the name of a file"),
        ('include: ["a\\0b"]', "top.yaml:1:11: include[0]: must be the name of a file"),
        ("include: base.yaml", "top.yaml:1:10: include: must be a list of files such as"),
        ("include: []", "top.yaml:1:10: include: must be a list of files such as"),
        ("include: [latin.yaml]", "include[0]: 'latin.yaml': byte 0xE9 in line 2 is not UTF-8"),
        ("include: [broken.yaml]", "broken.yaml:2:1: not YAML"),
        ("include: [large.yaml, large.yaml]", "all files together are larger than 1024 KiB"),
    ],
)
def test_a_file_that_cannot_be_included_is_said_and_nothing_else(write, tmp_path, text, words):
    path = write(top=text, around="include: [top.yaml]\n", broken="[", large="#" * 700_000)
    (tmp_path / "latin.yaml").write_bytes(b"version: 1\n# caf\xe9\n")
    os.mkfifo(tmp_path / "pipe.yaml")
    found = "\n".join(refusal(path))
    assert words in found
    assert "is missing" not in found  # what it lacks is in the file that was not read


def test_files_are_bounded_in_number_and_depth(write, tmp_path):
    path = write(top="include: [" + "e.yaml, " * 40 + "]\n", e="version: 1\n")
    assert f"more than {compose.MAX_FILES} files together" in refusal(path)[0]
    for at in range(10):
        (tmp_path / f"n{at}.yaml").write_text(f"include: [n{at + 1}.yaml]\n")
    found = refusal(str(tmp_path / "n0.yaml"))
    assert found == ["n7.yaml:1:11: include[0]: files that include each other are more than 8 deep"]
    doubling = {f"d{at}": f"include: [d{at + 1}.yaml, d{at + 1}.yaml]\n" for at in range(7)}
    began_s = time.monotonic()
    refusal(write(**doubling, d7="version: 1\n"))
    assert time.monotonic() - began_s < 2.0
    many = "probing: {batches: [" + "1, " * 40_000 + "]}\n"
    found = refusal(write(top="include: [big.yaml, big.yaml, big.yaml]\n", big=many))
    assert any("50000 keys and values in all files together" in line for line in found)


@pytest.mark.parametrize(
    ("hosts", "words"),
    [
        ("hosts: [a]", "hosts: must be a mapping of host names"),
        ("hosts: {a b: {}}", "hosts.'a b': is no host name, and no pattern"),
        ("hosts: {a: act}", "hosts.a: must be a mapping: what is different"),
        ("hosts: {a: {include: [base.yaml]}}", "include stands at the top of a file"),
        ("hosts: {a: {hosts: {}}}", "hosts stands at the top of a file"),
    ],
)
def test_what_is_no_part_for_a_host_is_said_on_every_host(write, hosts, words):
    (found,) = refusal(write(top=BASE + hosts + "\n"))
    assert words in found
    assert found.startswith("top.yaml:10:")


def test_a_hostile_pattern_takes_no_time(write):
    path = write(top=BASE + f"hosts: {{'{'a*' * 120}b': {{mode: advise}}}}\n")
    began_s = time.monotonic()
    assert load_policy(path, host="a" * 253).mode.value == "act"
    assert time.monotonic() - began_s < 1.0


def test_the_digest_covers_all_files_and_the_host_and_is_the_texts_alone_for_one_file(write):
    path = write(top="include: [base.yaml]\n", base=BASE)
    seen = {load_policy(path, host="h").sha256}
    assert seen == {load_policy(path, host="other").sha256}  # nothing depends on it
    write(top="include: [base.yaml]\n", base=BASE + "# \n")
    seen.add(load_policy(path, host="h").sha256)
    write(top="include: [base.yaml]\nhosts: {x: {mode: act}}\n", base=BASE)
    seen |= {load_policy(path, host="h").sha256, load_policy(path, host="other").sha256}
    assert len(seen) == 4
    alone = write(alone=BASE)
    assert load_policy(alone).sha256 == hashlib.sha256(BASE.encode()).hexdigest()


def test_every_file_that_was_looked_for_is_told(write):
    seen = {}
    path = write(top="include: [base.yaml, none.yaml]\n", base=BASE)
    with pytest.raises(PolicyError):
        load_policy(path, seen=seen)
    assert [Path(name).name for name in seen] == ["top.yaml", "base.yaml", "none.yaml"]
    assert [mark is None for mark in seen.values()] == [False, False, True]


def test_a_text_that_is_in_no_folder_includes_nothing():
    with pytest.raises(PolicyError, match="only a file can include others"):
        parse_policy("include: [base.yaml]\n", "<stdin>")
    assert parse_policy(BASE + "hosts: {h: {mode: advise}}\n", "-", host="h").mode.value == "advise"


def test_all_entries_for_hosts_are_checked_as_far_as_can_be_known(write):
    path = write(
        top=BASE + "hosts:\n  lab: {models: {qa: {min_quality: 0.99}}}\n"
        "  gpu-*: {models: {qb: {weight: 2}}, interval: 1ms}\n"
        "  gpu-1: {models: {qb: {objective: {latency: 1s, percentile: 99}, "
        "variants: {x: {model: x, quality: 1}}}}}\n"
    )
    assert load_policy(path, host="elsewhere").models
    patterns, problems = check_hosts(path)
    assert patterns == ("lab", "gpu-*", "gpu-1")
    assert [(one.line, one.path) for one in problems] == [
        (11, "models.qa.min_quality"),
        (12, "interval"),
    ]


def test_the_fleets_example_is_what_it_says(capsys):
    box = str(FLEET / "box.yaml")
    assert main(["policy", "check", box]) == 0
    assert "3 under hosts checked" in capsys.readouterr().out
    modes = {h: load_policy(box, host=h).mode.value for h in ("box-1", "box-lab-1", "pc")}
    assert modes == {"box-1": "act", "box-lab-1": "advise", "pc": "advise"}
    shown = policy_to_dict(load_policy(box, host="box-17"))
    assert list(shown["models"]["counter"]["variants"]) == ["int8", "pruned"]
    assert main(["policy", "show", "--host", "box-17", box]) == 0
    assert "latency: 400ms" in capsys.readouterr().out
    assert main(["policy", "check", str(FLEET / "base.yaml")]) == 1
    told = capsys.readouterr()
    assert "base.yaml:1:1: triton: is missing" in told.out
    assert "where others include this file it is complete only there" in told.err
    for words in (["explain", "include"], ["explain", "hosts"]):
        assert main(["policy", *words]) == 0
    assert "All entries that match apply" in capsys.readouterr().out


def test_two_hosts_can_be_compared(write, capsys):
    path = write(top=BASE + "hosts: {h: {mode: advise}}\n")
    assert main(["policy", "diff", "--host", "h", path, path]) == 0
    other = write(other=BASE)
    assert main(["policy", "diff", "--host", "h", path, other]) == 1
    assert capsys.readouterr().out == "mode: advise -> act\n"


def test_a_file_that_changes_between_two_readings_of_it_is_to_be_read_again(write, monkeypatch):
    path = write(top="include: [base.yaml, base.yaml]\n", base=BASE)
    parse = compose._Reading._parse

    def edits(self, text, filename):
        if filename.endswith("base.yaml") and "# edited" not in text:
            write(base=BASE + "# edited\n")
        return parse(self, text, filename)

    monkeypatch.setattr(compose._Reading, "_parse", edits)
    seen = {}
    load_policy(path, seen=seen)
    assert list(seen.values())[1] is None  # no mark that any look could find

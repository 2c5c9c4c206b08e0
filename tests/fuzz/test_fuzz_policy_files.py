"""Policies in several files and parts for hosts: merged as by hand, or refused with a place.

TRITON_GOVERNOR_FUZZ sets how many; each has a seed of its own.
"""

from __future__ import annotations

import copy
import json
import random

import pytest
import yaml
from test_fuzz_policy import BASES, COUNT, VALUES, check_policy, mutate_bytes

from controller.policy.compose import compose
from controller.policy.load import PolicyError, load_policy
from controller.policy.positions import read_yaml

CASES = max(COUNT // 3, 1)
SOME = [value for value in VALUES if str(value) not in {"nan", "inf"}]  # JSON has them not


def over(base, part):
    """Return a tree under another one: what composing means, in five lines."""
    if not isinstance(base, dict) or not isinstance(part, dict):
        return copy.deepcopy(part)
    merged = copy.deepcopy(base)
    for key, value in part.items():
        if key in merged and value is None:
            del merged[key]
        elif key in merged:
            merged[key] = over(merged[key], value)
        else:
            merged[key] = copy.deepcopy(value)
    return merged


def cut(rng, tree):
    """Return a part of a tree: some of its keys, some of those with another value."""
    part = {}
    for key, value in tree.items():
        chance = rng.random()
        if isinstance(value, dict) and chance < 0.6:
            part[key] = cut(rng, value)
        elif chance < 0.7:
            part[key] = copy.deepcopy(value)
        elif chance < 0.75:
            part[key] = copy.deepcopy(rng.choice(SOME))
    return part


def written(tree):
    return json.dumps(tree, allow_nan=False)


def a_case(rng, folder):
    """Write a policy in some files; return the tree that they should come to, for one host."""
    tree = yaml.safe_load(rng.choice(BASES))
    files = [tree, *(cut(rng, tree) for _ in range(rng.randint(1, 3)))]
    parts = {
        pattern: cut(rng, tree)
        for pattern in rng.sample(["box-1", "box-*", "other", "*"], rng.randint(0, 3))
    }
    merged = {}
    for file in files:
        merged = over(merged, file)
    for pattern, part in parts.items():
        if pattern != "other":
            merged = over(merged, part)
    *included, top = files
    for at, file in enumerate(included):
        (folder / f"{at}.yaml").write_text(written(file))
    top = {"include": [f"{at}.yaml" for at in range(len(included))], **top}
    (folder / "top.yaml").write_text(written({**top, "hosts": parts} if parts else top))
    return merged


def test_files_come_to_what_merging_by_hand_comes_to(tmp_path):
    accepted = 0
    for seed in range(CASES):
        merged = a_case(random.Random(seed), tmp_path)
        top = tmp_path / "top.yaml"
        found = compose(top.read_text(), str(top), folder=str(tmp_path))
        of_host = found.of("box-1")
        by_hand = read_yaml(written(merged), "by hand")  # in the order of its keys, too
        same = json.dumps(of_host.data) == json.dumps(by_hand.data)
        assert same or found.document.problems, f"seed {seed}"
        alone = tmp_path / "alone.yaml"
        alone.write_text(written(merged))
        said = [told(path) for path in (top, alone)]
        # The same problems, whatever file they are in; or the same policy.
        assert said[0] == said[1], f"seed {seed}"
        accepted += not said[0]
    assert CASES * 0.02 < accepted < CASES * 0.98


def told(path):
    """Return what is wrong, without its place; check that the place exists."""
    try:
        policy = load_policy(path, host="box-1")
    except PolicyError as error:
        for problem in error.problems:
            with open(problem.file, encoding="utf-8") as stream:  # noqa: PTH123
                lines = stream.read().splitlines() or [""]
            assert 1 <= problem.line <= len(lines), problem
            assert 1 <= problem.column <= len(lines[problem.line - 1]) + 1, problem
        return sorted((one.path, one.message) for one in error.problems)
    check_policy(policy)
    return []


@pytest.mark.timeout(900)
def test_mutated_files_are_merged_or_refused_and_nothing_else(tmp_path):
    for seed in range(CASES):
        rng = random.Random(seed)
        a_case(rng, tmp_path)
        path = tmp_path / rng.choice(["top.yaml", "0.yaml"])
        path.write_bytes(mutate_bytes(rng, path.read_bytes()))
        try:
            refused = outcome(tmp_path / "top.yaml")
        except Exception as error:
            raise AssertionError(f"seed {seed}: {error!r}") from error
        if refused is not None:
            assert refused.problems, seed
            assert len(str(refused).splitlines()) == len(refused.problems), seed


def outcome(path):
    """Return why a policy is refused; None: it is a good one."""
    try:
        check_policy(load_policy(path, host="box-1"))
    except PolicyError as error:
        return error
    return None

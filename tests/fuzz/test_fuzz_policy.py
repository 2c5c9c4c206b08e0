"""Mutations of valid policies: accepted, or refused with a place and a reason, and soon.

TRITON_GOVERNOR_FUZZ sets how many (1,000 by default); each has a seed of its own, so that a
failure names the one that reproduces it.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import random
import re
import time
from pathlib import Path

import pytest
import yaml

from controller.policy.load import PolicyError, parse_policy, parse_raw
from controller.policy.render import policy_to_yaml

COUNT = int(os.environ.get("TRITON_GOVERNOR_FUZZ", "1000"))
SLOWEST_S = 1.0
BASES = [
    path.read_bytes() for path in sorted((Path(__file__).parents[2] / "policies").glob("*.yaml"))
]
FULL = b"""\
version: 1
triton: {grpc: '[::1]:8001', metrics: 'http://h:8002/metrics', traces: {listen: '0.0.0.0:4318'}}
gpu: {source: nvml, devices: [0, 2]}
interval: 50ms
models:
  digits:
    objective: {latency: 60ms, percentile: 99.5}
    alias: repository
    client_max_batch: 8
    min_quality: 0.85
    variants:
      wide: {model: w, quality: 0.9}
      narrow: {model: n, quality: 0.884, memory: {gpu: 2GiB}}
memory: {reserve: 1GiB}
stability: {min_dwell: 0s, max_switches_per_minute: 30, foreign_hold: 1h, stale_after: 500ms}
probing: {enabled: false, max_busy: 2.5%, batches: [1, 8]}
journal: {path: /var/lib/j.db, max_size: 1GiB}
mqtt: {host: b, port: 8883, node: n, topic_prefix: a/b, username: u, password_file: /p}
mode: advise
on_stop: revert
"""
BASES.append(FULL)

# What breaks readers of YAML and of numbers, and what a hand on a keyboard produces.
NASTY = [
    "&a", "*a", "<<: *a", "!!python/object/apply:os.system ['true']", "!!binary aGk=", "---", "...",
    "%YAML 1.2", "? ", "- ", ": ", "{", "}", "[", "]", "|", ">", "'", '"', "#", "\t", "\r", "\n",
    "\x00", "\x85", "\u2028", "\ufeff", "\ud7ff", "\U0010ffff", ".nan", "-.inf", "1e999", "-0",
    "9" * 400, "9" * 5000, "0x10", "1_000", "12:30", "2024-13-45", "true", "yes", "null", "~", "",
    "60", "60ms", "5%", "-5%", "60 ms", "1e3ms", "512MiB", "auto", "all", "..", "a" * 300, "é", "٣",
    "[" * 50, "{a: " * 50, "http://[", "127.0.0.1:99999", "[::1]:1", "/\\x00", "digits",
]  # fmt: skip
VALUES = [
    None, True, False, 0, 1, -1, 99, 100, 10**30, 0.5, 1.5, float("nan"), float("inf"), "",
    "digits", "60ms", "60", "5%", "1MiB", "auto", "all", "..", "a b", "x" * 300, "\u2028", [], [[]],
    [0, 0], {}, {"model": "x"}, {"": None}, {"version": 1},
]  # fmt: skip


def mutate_bytes(rng, base):
    data = bytearray(base)
    for _ in range(rng.randint(1, 8)):
        at = rng.randrange(len(data) + 1)
        match rng.randrange(4):
            case 0:
                data[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                del data[at : at + rng.randint(1, 40)]
            case 2:
                start = rng.randrange(len(data) + 1)
                data[at:at] = data[start : start + rng.randint(1, 60)]
            case _:
                data[at:at] = rng.choice(NASTY).encode()
    return bytes(data)


def mutate_tokens(rng, base):
    tokens = re.findall(r"\s+|[\w.%/-]+|.", base.decode())
    for _ in range(rng.randint(1, 5)):
        at = rng.randrange(len(tokens))
        match rng.randrange(4):
            case 0:
                tokens[at] = rng.choice(NASTY)
            case 1:
                tokens[at] = rng.choice(tokens)
            case 2:
                tokens.insert(at, rng.choice(tokens))
            case _:
                tokens[at] = "" if rng.random() < 0.5 else tokens[at] * 2
    return "".join(tokens).encode()


def containers(node):
    if isinstance(node, dict | list) and node:
        yield node
    for child in (
        node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    ):
        yield from containers(child)


def mutate_tree(rng, base):
    tree = yaml.safe_load(base)
    for _ in range(rng.randint(1, 3)):
        everything = list(containers(tree))
        if not everything:
            break
        node = rng.choice(everything)
        key = rng.choice(list(node) if isinstance(node, dict) else range(len(node)))
        match rng.randrange(4):
            case 0:
                node[key] = copy.deepcopy(rng.choice(VALUES))
            case 1:
                del node[key]
            case 2:
                node[key] = json.loads(json.dumps(rng.choice(everything)))
            case _ if isinstance(node, dict):
                node[rng.choice(["model", "x", "a b", "", f"{key}s", "digits"])] = node.pop(key)
            case _:
                node.append(copy.deepcopy(rng.choice(VALUES)))
    return yaml.safe_dump(tree, allow_unicode=rng.random() < 0.5, sort_keys=False).encode()


MUTATIONS = [mutate_bytes, mutate_tokens, mutate_tree]


def check_refusal(error):
    assert error.problems
    assert all(problem.line >= 1 and problem.column >= 1 for problem in error.problems)
    assert all(problem.message for problem in error.problems)
    assert len(str(error).splitlines()) == len(error.problems), str(error)


def check_policy(policy):
    assert policy.models
    assert 0.02 <= policy.tick_s <= 1.0
    again = parse_policy(policy_to_yaml(policy), "again.yaml")
    assert dataclasses.replace(again, sha256=policy.sha256) == policy


def outcome(text):
    """Return whether a text was accepted; fail on anything but a policy or placed problems."""
    try:
        policy = parse_raw(text, "fuzz.yaml")
    except PolicyError as error:
        check_refusal(error)
        return False
    check_policy(policy)
    return True


@pytest.mark.timeout(900)
def test_every_mutation_is_accepted_or_refused_with_its_place():
    accepted, slowest_s = 0, 0.0
    for seed in range(COUNT):
        rng = random.Random(seed)
        text = MUTATIONS[seed % len(MUTATIONS)](rng, rng.choice(BASES))
        started_s = time.monotonic()
        try:
            accepted += outcome(text)
        except Exception as error:
            raise AssertionError(f"seed {seed}: {error!r} for {text!r}") from error
        slowest_s = max(slowest_s, time.monotonic() - started_s)
    assert slowest_s < SLOWEST_S
    # Mutations that were all refused, or all accepted, would test nothing.
    assert COUNT * 0.02 < accepted < COUNT * 0.9


def test_what_is_mutated_is_valid():
    assert all(outcome(base) for base in BASES)

"""The JSON Schema and the shipped policies agree with the program and with each other."""

from __future__ import annotations

import json
import re
from pathlib import Path

import jsonschema
import pytest
import yaml

from controller.policy.json_schema import build_part_schema, build_schema, schema_text
from controller.policy.load import load_policy

POLICIES = Path(__file__).parents[2] / "policies"
SHIPPED = sorted(POLICIES.glob("*.yaml"))


def refusals(data):
    return list(jsonschema.Draft7Validator(build_schema()).iter_errors(data))


def described(node, path=()):
    for key, value in node.get("properties", {}).items():
        yield (*path, key), value
        yield from described(value, (*path, key))
    for name, definition in node.get("definitions", {}).items():
        yield from described(definition, (name,))


def test_the_shipped_schemas_are_current():
    shipped = (POLICIES / "policy.schema.json").read_text(encoding="utf-8")
    assert shipped == schema_text(), "run: governor policy schema > policies/policy.schema.json"
    shipped = (POLICIES / "policy-part.schema.json").read_text(encoding="utf-8")
    assert shipped == schema_text(part=True), "run: governor policy schema --part > policies/..."


PARTS = sorted((POLICIES / "fleet").glob("*.yaml"))


def part_refusals(data):
    return list(jsonschema.Draft7Validator(build_part_schema()).iter_errors(data))


@pytest.mark.parametrize("path", PARTS, ids=lambda path: path.name)
def test_editors_accept_the_parts_of_a_fleets_policy(path):
    jsonschema.Draft7Validator.check_schema(build_part_schema())
    assert part_refusals(yaml.safe_load(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    ("data", "fine"),
    [
        ({}, True),
        ({"models": {"m": {"objective": {"latency": "60ms"}, "variants": {"a": None}}}}, True),
        ({"gpu": None, "interval": None, "hosts": {"a-*": {"mode": "act", "mqtt": None}}}, True),
        ({"include": []}, False),
        ({"include": ["/etc/base.yaml"]}, False),
        ({"models": {"m": {"objectiv": {}}}}, False),
        ({"interval": "20"}, False),
        ({"hosts": {"a b": {}}}, False),
        ({"hosts": {"a": {"mod": "act"}}}, False),
        ({"hosts": {"a": {"hosts": {}}}}, False),
    ],
)
def test_a_part_needs_nothing_but_what_is_there_must_be_right(data, fine):
    assert (part_refusals(data) == []) == fine


def test_the_schema_is_a_valid_draft_7_without_features_of_later_drafts():
    schema = build_schema()
    jsonschema.Draft7Validator.check_schema(schema)
    assert schema["$schema"] == "http://json-schema.org/draft-07/schema#"
    assert not {"$defs", "prefixItems", "unevaluatedProperties"} & set(
        json.dumps(schema).split('"')
    )


def test_every_key_is_described():
    assert [path for path, node in described(build_schema()) if not node.get("description")] == []


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_a_shipped_policy_is_accepted_by_the_program_and_by_editors(path):
    assert load_policy(path).models
    assert refusals(yaml.safe_load(path.read_text(encoding="utf-8"))) == []


def test_there_are_shipped_policies():
    assert {path.name for path in SHIPPED} >= {"demo.yaml", "example.yaml"}


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.update(intervall="20ms"),
        lambda data: data.update(interval="20"),
        lambda data: data["models"].update({"a b": data["models"]["digits"]}),
        lambda data: data["models"]["digits"]["objective"].update(latency=60),
        lambda data: data["models"]["digits"].update(variants={}),
        lambda data: data["triton"].update(grpc="http://127.0.0.1:8001"),
        lambda data: data.pop("version"),
    ],
)
def test_an_editor_refuses_what_the_program_refuses(change):
    data = yaml.safe_load((POLICIES / "demo.yaml").read_text(encoding="utf-8"))
    change(data)
    assert refusals(data)


def test_the_example_writes_out_every_default_as_it_is():
    text = (POLICIES / "example.yaml").read_text(encoding="utf-8")
    lines = {re.sub(r"\s+#.*", "", line.strip().removeprefix("# ")) for line in text.splitlines()}
    for path, node in described(build_schema()):
        if "default" in node:
            default = node["default"]
            written = default if isinstance(default, str) else json.dumps(default)
            wanted = {f"{path[-1]}: {written}", f"{path[-1]}: {written.removesuffix('.0')}"}
            assert wanted & lines, f"example.yaml lacks the default of {'.'.join(path)}: {written}"


def test_the_example_names_every_key():
    text = (POLICIES / "example.yaml").read_text(encoding="utf-8")
    missing = [path for path, _ in described(build_schema()) if f"{path[-1]}:" not in text]
    assert missing == []

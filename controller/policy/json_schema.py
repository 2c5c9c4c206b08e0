"""The JSON Schema of a policy, and of a part of one, for editors.

Owns the way from pydantic's schema to draft 7, which is what editors read. The shipped copies are
`policies/policy.schema.json` and `policy-part.schema.json`; a test keeps them current. The part's
is for files that include others or are included, where an editor sees one file alone: nothing is
required there, and null removes a key. It must not say anything that
`controller.policy.schema` does not.
"""

from __future__ import annotations

import json
from typing import Any

from controller.policy.compose import COMPOSING
from controller.policy.schema import PolicySchema

_DRAFT = "http://json-schema.org/draft-07/schema#"


def build_schema() -> dict[str, Any]:
    """Return the schema of a policy as JSON Schema draft 7."""
    raw = PolicySchema.model_json_schema(ref_template="#/definitions/{model}")
    definitions = raw.pop("$defs")
    document: dict[str, Any] = _translate(raw)
    return {
        "$schema": _DRAFT,
        "title": "Triton Governor policy",
        **document,
        "definitions": {name: _translate(definitions[name]) for name in sorted(definitions)},
    }


def build_part_schema() -> dict[str, Any]:
    """Return the schema of a file that alone is no policy: what is there must be right."""
    whole: dict[str, Any] = _loosened(build_schema())
    own = {key: node for key, node in whole["properties"].items() if key not in COMPOSING}
    host_part = {
        "type": "object",
        "description": "What is different on some hosts.",
        "properties": own,
        "additionalProperties": False,
    }
    hosts = whole["properties"]["hosts"]["anyOf"][0]
    hosts["patternProperties"] = {
        pattern: {"$ref": "#/definitions/HostPart"} for pattern in hosts["patternProperties"]
    }
    whole["title"] = "Part of a Triton Governor policy"
    whole["definitions"]["HostPart"] = host_part
    return whole


def schema_text(*, part: bool = False) -> str:
    """Return the schema as the file that is shipped."""
    schema = build_part_schema() if part else build_schema()
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def _loosened(node: Any, *, names: bool = False) -> Any:
    """Return a node in which nothing is required and every key may be null."""
    if isinstance(node, list):
        return [_loosened(item) for item in node]
    if not isinstance(node, dict):
        return node
    if names:
        return {key: _or_null(_loosened(value)) for key, value in node.items()}
    return {
        key: {name: _loosened(one) for name, one in value.items()}
        if key == "definitions"
        else _loosened(value, names=key in ("properties", "patternProperties"))
        for key, value in node.items()
        if key not in ("required", "minProperties")
    }


def _or_null(node: dict[str, Any]) -> dict[str, Any]:
    options = node.get("anyOf", [])
    if any(option.get("type") == "null" for option in options):
        return node
    kept: dict[str, Any] = {k: node[k] for k in ("description", "default") if k in node}
    bare = {key: value for key, value in node.items() if key not in kept}
    return {"anyOf": [bare, {"type": "null"}], **kept}


def _translate(node: Any, *, names: bool = False) -> Any:
    """Return a node in draft 7; `names`: its keys are the operator's, not the schema's."""
    if isinstance(node, list):
        return [_translate(item) for item in node]
    if not isinstance(node, dict):
        return node
    if names:
        return {key: _translate(value) for key, value in node.items()}
    kept = {
        key: _translate(value, names=key in ("properties", "patternProperties"))
        for key, value in node.items()
        # Titles repeat the key, and a null default says "omitted", as the description does.
        if key != "title" and not (key == "default" and value is None)
    }
    if "patternProperties" in kept:
        kept["additionalProperties"] = False
    if "$ref" in kept and len(kept) > 1:  # draft 7 ignores what stands beside $ref
        kept = {"allOf": [{"$ref": kept.pop("$ref")}], **kept}
    return kept

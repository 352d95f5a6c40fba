"""Declarations made from the JSON schema of a case, as far as ours can express it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pvetools.schema import formats
from pvetools.schema.core import Field, Kind, PropertyString, Record, array, nested
from pvetools.schema.kinds import boolean, choice, integer, listing, number, string

# What our declarations leave out on purpose, with the reason.
NOT_OURS = {
    "oneOf": "kinds of one thing are a table beside the record (options.storage.TYPES), not variants inside a schema",
    "instance-types": "kinds of one thing are a table beside the record (options.storage.TYPES), not marks on options",
    "additionalProperties": "every record is closed: an option that nobody declared is always refused",
}
_FORMATS: Mapping[str, Kind] = {
    "pve-configid": formats.config_id,
    "pve-vmid": formats.vmid,
    "pve-node": formats.node,
    "pve-storage-id": formats.storage_id,
    "pve-volume-id": formats.volume_id,
    "disk-size": formats.disk_size,
    "dns-name": formats.dns_name,
    "mac-addr": formats.mac_address,
    "address": formats.address,
    "ip": formats.ip,
    "ipv4": formats.ipv4,
    "ipv6": formats.ipv6,
    "CIDR": formats.cidr,
    "email": formats.email,
    "urlencoded": formats.url_encoded(),
}


class Inexpressible(Exception):
    """The schema uses one of ``NOT_OURS``, or something unknown."""

    def __init__(self, feature: str) -> None:
        super().__init__(NOT_OURS.get(feature, f"'{feature}' is unknown to the test's helper"))


def record(schema: Mapping[str, Any]) -> type[Record]:
    """The record behind an object schema; a mapping of properties alone is one too."""
    if "oneOf" in schema:
        raise Inexpressible("oneOf")
    if "allOf" in schema:
        return type("Case", tuple(record(part) for part in schema["allOf"]), {})
    if schema.get("additionalProperties"):
        raise Inexpressible("additionalProperties")
    properties = schema["properties"] if isinstance(schema.get("properties"), Mapping) else schema
    return type("Case", (Record,), members(properties))


def property_string(properties: Mapping[str, Any]) -> type[PropertyString]:
    return type("Case", (PropertyString,), members(properties))


def members(properties: Mapping[str, Any]) -> dict[str, Any]:
    """Class attributes: a row for each property, and the aliases."""
    rows: dict[str, Any] = {"ALIASES": {}, "KEY_ALIAS": {}}
    for name, schema in properties.items():
        if "keyAlias" in schema:
            rows["KEY_ALIAS"][name] = (schema["keyAlias"], schema["alias"])
        elif "alias" in schema:
            rows["ALIASES"][name] = schema["alias"]
        else:
            rows[f"row_{len(rows)}"] = _row(name, schema)
    return rows


def _row(name: str, schema: Mapping[str, Any]) -> Field:
    if "instance-types" in schema:
        raise Inexpressible("instance-types")
    return Field(
        kind(schema),
        "An option of a case.",
        name=name,
        default=schema.get("default"),
        required=not schema.get("optional"),
        bare=bool(schema.get("default_key")),
        requires=schema.get("requires", ""),
    )


def kind(schema: Mapping[str, Any]) -> Kind:
    """The kind behind the schema of one value."""
    form, type_ = schema.get("format"), schema.get("type", "string")
    if type_ == "array":
        return array(kind(schema["items"]))
    if isinstance(form, Mapping):
        return nested(property_string(form))
    if form:
        return _named(form)
    if "enum" in schema:
        return choice(*map(str, schema["enum"]))
    if type_ == "boolean":
        return boolean
    if type_ == "integer":
        return integer(schema.get("minimum"), schema.get("maximum"))
    if type_ == "number":
        return number(schema.get("minimum"), schema.get("maximum"))
    if type_ != "string":
        raise Inexpressible(f"type {type_}")
    limits = {"min_length": schema.get("minLength", 0), "max_length": schema.get("maxLength", 0)}
    return string(schema.get("pattern", ""), **limits)


def _named(form: str) -> Kind:
    base = form.removesuffix("-list")
    if base not in _FORMATS:
        raise Inexpressible(f"format {form}")
    return listing(_FORMATS[base]) if base != form else _FORMATS[base]

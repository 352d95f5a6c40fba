"""The one declaration: typed rows that feed options, checks, config files, usage texts, man pages and completion."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, NamedTuple, Self, dataclass_transform

Raw = Mapping[str, "str | list[str]"]


class Kind(NamedTuple):
    """How one value is written down.

    ``parse`` raises ValueError with the reason, without the key. ``json`` is the JSON schema of the value.
    ``complete`` names the shell helper that completes it (``vmid``, ``storage``, ``volume``, ...).
    ``record`` is the property string behind a nested value; ``array`` marks options that may be repeated.
    """

    parse: Callable[[str], Any]
    format: Callable[[Any], str] = str
    json: Mapping[str, Any] = {"type": "string"}
    complete: str = ""
    record: type[PropertyString] | None = None
    array: bool = False


class NestedErrors(ValueError):
    """Wrong keys of a property string, each with its reason."""

    def __init__(self, errors: Mapping[str, str]) -> None:
        self.errors = dict(errors)
        super().__init__("format error\n" + "\n".join(f"{key}: {reason}" for key, reason in self.errors.items()))


class Field:
    """One option: a row of the declaration. As a descriptor it yields the value of a record, or the default."""

    __slots__ = (
        "apply", "attr", "bare", "count", "default", "help", "kind", "name", "note", "required", "requires", "start",
    )  # fmt: skip

    def __init__(self, kind: Kind, help: str, **more: Any) -> None:
        self.kind, self.help = kind, help
        self.attr = ""
        self.name: str = more.get("name", "")
        self.default: Any = more.get("default")
        self.required: bool = more.get("required", False)
        self.bare: bool = more.get("bare", False)
        self.requires: str = more.get("requires", "")
        self.apply: str = more.get("apply", "restart")
        self.note: str = more.get("note", "")
        self.count: int = more.get("count", 0)
        self.start: int = more.get("start", 0)

    def __set_name__(self, owner: type, attr: str) -> None:
        self.attr = attr
        self.name = self.name or attr.rstrip("_")

    def __get__(self, record: Record | None, owner: type | None = None) -> Any:
        if record is None:
            return self
        return {} if self.count else self.default

    def keys(self) -> Iterator[str]:
        """``scsi`` gives ``scsi0 .. scsi30``; a plain option gives its own name."""
        if not self.count:
            yield self.name
        for index in range(self.start, self.start + self.count):
            yield f"{self.name}{index}"

    @property
    def label(self) -> str:
        """Name as it stands in documentation: ``scsi[n]``."""
        return f"{self.name}[n]" if self.count else self.name


def field(
    kind: Kind,
    help: str,
    *,
    default: Any = None,
    name: str = "",
    required: bool = False,
    bare: bool = False,
    requires: str = "",
    apply: str = "restart",
    note: str = "",
) -> Any:
    """Declare one option.

    Args:
        kind: how its value is written down.
        help: one plain sentence for users.
        default: value in force when it is not given.
        name: public name when it differs from the attribute (``import-from``).
        required: must be given.
        bare: may be given without its name in a property string.
        requires: another option that must be given with it.
        apply: when a change takes effect: fast, live, restart, internal.
        note: default in words, when it is a rule and not a value.
    """
    return Field(
        kind, help, default=default, name=name, required=required, bare=bare, requires=requires, apply=apply, note=note
    )


def indexed(
    kind: Kind,
    help: str,
    *,
    count: int,
    start: int = 0,
    name: str = "",
    apply: str = "restart",
) -> Any:
    """Declare a family of options, such as ``scsi0 .. scsi30``; its value is a mapping of index to value."""
    return Field(kind, help, count=count, start=start, name=name, apply=apply)


# Without field_specifiers every row counts as "has a default": rows stay short, `check` reports what is missing.
@dataclass_transform(kw_only_default=True, frozen_default=True)
class Record:
    """A set of options with typed values.

    ``given`` holds the parsed values that were really present, keyed by full name (``scsi3``);
    attributes yield these or the defaults. ``FIELDS`` holds the rows by label: ``numa``, ``numa[n]``; not those of the
    ways to apply that a class leaves out, nor inherited ones that it goes ``WITHOUT``.
    """

    FIELDS: ClassVar[Mapping[str, Field]] = {}
    ALIASES: ClassVar[Mapping[str, str]] = {}
    LEAVES_OUT: ClassVar[frozenset[str]] = frozenset()
    WITHOUT: ClassVar[frozenset[str]] = frozenset()
    _own: ClassVar[Mapping[str, Field]] = {}
    given: dict[str, Any]

    def __init_subclass__(cls) -> None:
        cls._own = {row.label: row for row in vars(cls).values() if isinstance(row, Field)}
        fields: dict[str, Field] = {}
        aliases: dict[str, str] = {}
        for base in reversed(cls.__mro__):
            own = vars(base).get("_own", {})
            fields.update({label: row for label, row in own.items() if row.apply not in cls.LEAVES_OUT})
            for label in vars(base).get("WITHOUT", ()):
                fields.pop(label, None)
            aliases.update(vars(base).get("ALIASES", {}))
        cls.FIELDS, cls.ALIASES = fields, aliases

    def __init__(self, **values: Any) -> None:
        by_attr = {f.attr: f for f in self.FIELDS.values()}
        given: dict[str, Any] = {}
        for attr, value in values.items():
            row = by_attr[attr]
            if value is not None and row.count:
                given.update({f"{row.name}{index}": item for index, item in value.items()})
            elif value is not None:
                given[row.name] = value
        self._fill(given)

    def _fill(self, given: dict[str, Any]) -> None:
        own = self.__dict__
        own["given"] = given
        for key, value in given.items():
            row, index = self._at(key)
            if index is None:
                own[row.attr] = value
            else:
                own.setdefault(row.attr, {})[index] = value

    @classmethod
    def _at(cls, key: str) -> tuple[Field, int | None]:
        found = cls.find(key)
        if found is None:
            raise KeyError(key)
        return found

    @classmethod
    def find(cls, key: str) -> tuple[Field, int | None] | None:
        """The row behind a full name, and the index for families; None for an unknown name."""
        row = cls.FIELDS.get(key)
        if row is not None:
            return None if row.count else (row, None)
        base = key.rstrip("0123456789")
        row, digits = cls.FIELDS.get(f"{base}[n]"), key[len(base) :]
        if row is None or not digits or (digits[0] == "0" and digits != "0"):
            return None
        index = int(digits)
        return (row, index) if row.start <= index < row.start + row.count else None

    @classmethod
    def check(cls, raw: Raw) -> Self:
        """The strict door for input: parse everything, report ALL wrong parameters at once.

        Raises:
            NestedErrors: keyed by option (``scsi3.discard`` for a part of a property string).
        """
        given: dict[str, Any] = {}
        errors: dict[str, str] = {}
        for key, text in cls._unaliased(raw, errors).items():
            cls._check_one(key, text, given, errors)
        cls._check_whole(given, errors)
        if errors:
            raise NestedErrors(errors)
        return cls._made(given)

    @classmethod
    def _made(cls, given: dict[str, Any]) -> Self:
        record = cls.__new__(cls)
        record._fill(given)
        return record

    @classmethod
    def _unaliased(cls, raw: Raw, errors: dict[str, str]) -> Raw:
        out: dict[str, str | list[str]] = {}
        for key, text in raw.items():
            target = cls.ALIASES.get(key, key)
            if target in out or (target != key and target in raw):
                errors[key] = f"cannot set both '{key}' and its alias target '{target}'; already defined (via alias)"
            out[target] = text
        return out

    @classmethod
    def _check_one(cls, key: str, text: str | list[str], given: dict[str, Any], errors: dict[str, str]) -> None:
        found = cls.find(key)
        if found is None:
            errors[key] = "property is not defined in schema and the schema does not allow additional properties"
            return
        try:
            given[key] = parse_value(found[0].kind, text)
        except NestedErrors as error:
            errors.update({f"{key}.{inner}": reason for inner, reason in error.errors.items()})
        except ValueError as error:
            errors[key] = str(error)

    @classmethod
    def _check_whole(cls, given: Mapping[str, Any], errors: dict[str, str]) -> None:
        for row in cls.FIELDS.values():
            broken = any(key == row.name or key.startswith(row.name + ".") for key in errors)
            if row.required and row.name not in given and not broken:
                errors[row.name] = "property is missing and it is not optional"
            if row.requires and row.name in given and row.requires not in given:
                errors[row.name] = f"missing property - '{row.name}' requires this property: '{row.requires}'"

    @classmethod
    def read(cls, raw: Mapping[str, str]) -> Self:
        """The lenient door for config files: unknown keys are skipped, known ones must be valid.

        Raises:
            NestedErrors: values that this version cannot understand.
        """
        given: dict[str, Any] = {}
        errors: dict[str, str] = {}
        for key, text in raw.items():
            if cls.find(key):
                cls._check_one(key, text, given, errors)
        if errors:
            raise NestedErrors(errors)
        return cls._made(given)

    def texts(self) -> dict[str, str]:
        """The given values as they stand in a config file, keyed by full name."""
        return {key: self._at(key)[0].kind.format(value) for key, value in self.given.items()}

    def replaced(self, **changes: Any) -> Self:
        """A copy with some attributes changed; None removes one. A family is replaced as a whole."""
        kept = {key: value for key, value in self.given.items() if self._at(key)[0].attr not in changes}
        return self._made(kept | type(self)(**changes).given)

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.given == vars(other)["given"]

    def __hash__(self) -> int:
        return hash(tuple(sorted(self.texts().items())))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.given})"


def parse_value(kind: Kind, text: str | list[str]) -> Any:
    """Parse one raw value; a repeated option gives a list.

    Raises:
        ValueError: the reason.
    """
    if kind.array:
        return [kind.parse(part) for part in ([text] if isinstance(text, str) else text)]
    if isinstance(text, list):
        if len(text) != 1:
            raise ValueError("type check ('string') failed - got ARRAY")
        text = text[0]
    return kind.parse(text)


class PropertyString(Record):
    """A value made of ``key=value`` pairs joined by commas, one of which may stand without its key.

    ``KEY_ALIAS`` maps keys whose own name is a value, such as ``virtio=MAC`` of a network card:
    key -> (attribute for the name, attribute for the value).
    """

    KEY_ALIAS: ClassVar[Mapping[str, tuple[str, str]]] = {}

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse the text of a property string.

        Raises:
            ValueError: malformed; NestedErrors: wrong keys or values.
        """
        raw: dict[str, str] = {}
        for part in text.split(","):
            if part.strip():
                cls._add_part(part, raw)
        return cls.check(raw)

    @classmethod
    def _add_part(cls, part: str, raw: dict[str, str]) -> None:
        key, separator, value = part.partition("=")
        if not separator or not key:
            key, value = cls._bare_name(), part
        if key in cls.KEY_ALIAS:
            name_key, value_key = cls.KEY_ALIAS[key]
            cls._add(name_key, key, raw)
            key = value_key
        elif separator and not value:
            raise ValueError(f"value for key '{key}' is missing in comma-separated list property")
        cls._add(key, value, raw)

    @staticmethod
    def _add(key: str, value: str, raw: dict[str, str]) -> None:
        if key in raw:
            raise ValueError(f"duplicate key in comma-separated list property: {key}")
        raw[key] = value

    @classmethod
    def _bare_name(cls) -> str:
        for row in cls.FIELDS.values():
            if row.bare:
                return row.name
        raise ValueError("value without key, but schema does not define a default key")

    def format(self) -> str:
        """The canonical text: the bare key first, then the others sorted."""
        texts = self.texts()
        alias = {(name, value): key for key, (name, value) in self.KEY_ALIAS.items()}
        parts: list[str] = []
        for name, value in dict.fromkeys(alias):
            if name in texts:
                model = texts.pop(name)
                address = texts.pop(value, None)
                parts.append(model if address is None else f"{model}={address}")
        bare = next((row.name for row in self.FIELDS.values() if row.bare), "")
        if bare in texts:
            text = texts.pop(bare)
            parts.append(f"{bare}={text}" if "=" in text else text)
        return ",".join(parts + [f"{key}={texts[key]}" for key in sorted(texts)])


def nested(record: type[PropertyString], *, form: str = "", complete: str = "") -> Kind:
    """A value that is a property string; ``form`` is its format's public name, where it has one."""
    schema = {"type": "string", "format": form} if form else {"type": "string"}
    return Kind(record.parse, lambda value: str(value.format()), schema, complete, record)


def array(kind: Kind) -> Kind:
    """An option that may be given several times."""
    return kind._replace(array=True)

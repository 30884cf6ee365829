"""Registries: name -> constructor. Components are found by importing the modules of one package.

A component is a dataclass or a function whose keyword-only parameters are its configuration schema,
with pydantic types and ranges, so that a new file needs only one decorator. Other packages add
components through an entry point of the group named like the package.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from typing import Any, TypeVar, get_type_hints

from pydantic import ConfigDict, TypeAdapter, create_model
from pydantic_core import PydanticSerializationError

from medcl3d.config.field_types import CHOICE_OF, Choice
from medcl3d.config.plain import plain
from medcl3d.config.renamed_fields import RENAMED, with_present_names
from medcl3d.config.validate import _in_memory, _validate
from medcl3d.core.errors import ConfigError

T = TypeVar("T", bound=Callable[..., Any])


class Registry:
    """The components of one kind, by name."""

    def __init__(self, kind: str, package: str, former: str = "", owner: str = "{}"):
        """kind: in words; package: where the components are, and the group of entry points; former: an
        earlier group that is read too; owner: a component in messages on its fields.
        """
        self.owner = owner
        self.kind = kind
        self.package = package
        self._groups = (package, former) if former else (package,)
        self._constructors: dict[str, Callable[..., Any]] = {}
        self._schemas: dict[str, TypeAdapter[Any]] = {}
        self._json_schemas: dict[str, dict[str, Any]] = {}
        self._renamed: dict[str, Mapping[str, str]] = {}
        self._searched = False

    def register(self, name: str, *, renamed: Mapping[str, str] | None = None) -> Callable[[T], T]:
        """Decorator: register a constructor as `name`. ValueError if another constructor has the name.

        The registered constructor validates its keyword-only arguments by `schema`: a wrong one is a
        ConfigError, as in YAML.

        renamed  former name of a field -> its present name; the former one is accepted with a FutureWarning
        """

        def keep(constructor: T) -> T:
            known = self._constructors.get(name)
            if known is not None and known.__qualname__ != constructor.__qualname__:
                both = f"{known.__module__} and {constructor.__module__}"
                raise ValueError(f"{self.kind} {name!r} is registered twice: {both}")
            fields = inspect.signature(constructor).parameters
            for former, present in (renamed or {}).items():
                if former in fields or present not in fields:
                    problem = f"{former!r} cannot be the former name of {present!r}"
                    raise ValueError(f"{self.kind} {name!r}: {problem}: only the present name is a field")
            made = self._validating(name, constructor)
            self._constructors[name], self._renamed[name] = made, dict(renamed or {})
            self._schemas.pop(name, None)
            self._json_schemas.pop(name, None)
            return made

        return keep

    def _validating(self, name: str, constructor: T) -> T:
        """The same class or function with validation of its keyword-only arguments and defaults filled in."""
        is_class = inspect.isclass(constructor)
        function: Callable[..., Any] = constructor.__init__ if is_class else constructor  # type: ignore[misc]
        parameters = inspect.signature(constructor).parameters.values()
        others = [parameter.name for parameter in parameters if parameter.kind is not parameter.KEYWORD_ONLY]

        @functools.wraps(function)
        def validate_and_call(*args: Any, **given: Any) -> Any:
            own = {key: value for key, value in given.items() if key not in others}
            rest = {key: given[key] for key in others if key in given}
            try:
                return function(*args, **rest, **parse_fields(self, name, own, name))
            except ConfigError as error:
                error.of(name, self.owner.format(name))
                raise

        if not is_class:
            return validate_and_call  # type: ignore[return-value]
        constructor.__init__ = validate_and_call  # type: ignore[method-assign]
        return constructor

    def _search(self) -> None:
        if self._searched:
            return
        self._searched = True
        package = importlib.import_module(self.package)
        for module in pkgutil.iter_modules(package.__path__, prefix=f"{self.package}."):
            importlib.import_module(module.name)
        for group in self._groups:
            for plugin in entry_points(group=group):
                plugin.load()

    def names(self) -> list[str]:
        """All names, sorted."""
        self._search()
        return sorted(self._constructors)

    def get(self, name: str) -> Callable[..., Any]:
        """The constructor of that name. KeyError if there is none."""
        if name not in self._constructors:
            self._search()
        return self._constructors[name]

    def schema(self, name: str) -> TypeAdapter[Any]:
        """The fields of `name`: its constructor's keyword-only parameters, strict, unknown ones refused."""
        if name not in self._schemas:
            self._schemas[name] = self._schema(name)
        return self._schemas[name]

    def _schema(self, name: str) -> TypeAdapter[Any]:
        constructor = self.get(name)
        plain_class = inspect.isclass(constructor) and not dataclasses.is_dataclass(constructor)
        annotated = constructor.__init__ if plain_class else constructor  # type: ignore[misc]
        hints = get_type_hints(annotated, include_extras=True)
        options: dict[str, Any] = {}
        for parameter in inspect.signature(constructor).parameters.values():
            if parameter.kind is parameter.KEYWORD_ONLY:
                default = ... if parameter.default is parameter.empty else parameter.default
                options[parameter.name] = (hints[parameter.name], default)
        config = ConfigDict(extra="forbid", strict=True, frozen=True)
        if renamed := self.renamed(name):
            config["json_schema_extra"] = {RENAMED: dict(renamed)}
        return TypeAdapter(create_model(name, __config__=config, **options))

    def json_schema(self, name: str) -> dict[str, Any]:
        """The JSON Schema of the fields of `name`; not to be changed."""
        if name not in self._json_schemas:
            self._json_schemas[name] = self.schema(name).json_schema()
        return self._json_schemas[name]

    def renamed(self, name: str) -> Mapping[str, str]:
        """Former name of a field of `name` -> its present name."""
        self.get(name)
        return self._renamed[name]

    def attribute(self, name: str) -> Callable[..., Any]:
        """The registered class or function of this name, as in ``medcl3d.pairs.OverlappingCrops``.

        AttributeError if none has this name. Submodules are left to the import system.
        """
        package = importlib.import_module(self.package)
        if not name.startswith("_") and name not in {
            module.name for module in pkgutil.iter_modules(package.__path__)
        }:
            for constructor in map(self.get, self.names()):
                if constructor.__name__ == name:
                    return constructor
        raise AttributeError(f"module {self.package!r} has no attribute {name!r}")

    def attributes(self) -> list[str]:
        """Names of all registered classes and functions, sorted."""
        return sorted(self.get(name).__name__ for name in self.names())

    def __get_pydantic_json_schema__(self, _schema: Any, _handler: Any) -> dict[str, Any]:
        """The JSON Schema of a field that chooses a component here; `medcl3d schema` expands it."""
        return {CHOICE_OF: self.package}

    def build(self, choice: Choice, *args: Any) -> Any:
        """Construct the chosen component; `args` are the constructor's positional parameters."""
        return self.get(choice.name)(*args, **choice.fields)


def registry_of(package: str) -> Registry | None:
    """The registry of a package, None if it has none."""
    values = vars(importlib.import_module(package)).values()
    return next((value for value in values if isinstance(value, Registry) and value.package == package), None)


def parse_fields(registry: Registry, chosen: str, fields: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The fields of a component, defaults filled in. ConfigError: a wrong field; `name` as in `parse`."""
    fields, values = with_present_names(fields, registry.renamed(chosen), f"{name}: "), {}
    for field, value in fields.items():
        try:
            values[field] = plain(value)
        except PydanticSerializationError:
            problem = f"an object of type {type(value).__name__} is not a field value"
            raise ConfigError(field, None, problem, "use numbers, text or lists", place=name) from None
    parsed = _validate(_in_memory(values), registry.schema(chosen), name)
    return {field: getattr(parsed, field) for field in type(parsed).model_fields}

"""A validated table of named parts: one registration adds a part, its options and its flags."""

from __future__ import annotations

import difflib
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, TypeVar

from sde_diffusion.errors import InputError, require, require_plain_name

T = TypeVar("T")

OWN_PACKAGES = ("sde_diffusion", "samplers")


def hint(name: str, known: list[str]) -> str:
    """Return «; did you mean 'x'?» for a near miss among ``known``, else a bare semicolon."""
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else ";"


class Registry(Generic[T]):
    """Named classes or functions of one kind.

    The options of an entry are the arguments it takes: the fields of a dataclass, the parameters of a function.
    :meth:`config` lists them with their defaults and :meth:`build` checks them.

    Args:
        kind: the word for one entry, used in error messages, for example ``"sampler"``.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, Callable[..., T]] = {}
        self._sources: dict[str, str] = {}  # the files that registered them …
        self._others: dict[str, str] = {}  # … and what to import, where that is not ours
        _REGISTRIES.append(self)

    def register(self, name: str) -> Callable[[Any], Any]:
        """Return a decorator that enters a class or function under ``name``, or again if its module is run again.

        Raises:
            InputError: if the name is taken, or cannot be part of a file's name, as samplers' names are.
        """
        require_plain_name(self.kind, name)
        caller = sys._getframe(1).f_globals
        module = str(caller.get("__name__"))
        source = str(caller.get("__file__", module))

        def enter(entry: Any) -> Any:
            known = self._entries.get(name)
            if known is not None:
                anew = known is not entry and self._sources.get(name) == source  # its module or cell was run again
                if not anew or known.__qualname__ != entry.__qualname__:
                    where = self._sources.get(name)
                    text = f"{self.kind} {name!r} is registered already, by {where}; give one of the two another name"
                    raise InputError(text)
            self._entries[name], self._sources[name] = entry, source
            if module.partition(".")[0] not in (*OWN_PACKAGES, "__main__"):
                self._others[name] = module if "." in module else source
            return entry

        return enter

    def source(self, name: str) -> str | None:
        """Return the file or module outside of this project that registered an entry; None of our own."""
        return self._others.get(name)

    def names(self) -> list[str]:
        """Return all names in alphabetical order."""
        return sorted(self._entries)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __getitem__(self, name: str) -> Callable[..., T]:
        """Return the entry itself.

        Raises:
            InputError: if there is none of that name; names the nearest one.
        """
        if name not in self._entries:
            raise InputError(
                f"{self.kind}={name!r}: unknown{hint(str(name), self.names())} known: {', '.join(self.names())}"
            )
        return self._entries[name]

    def name_of(self, part: object) -> str:
        """Return the name of the class that ``part`` is of.

        Raises:
            InputError: if it is not registered.
        """
        for name, entry in self._entries.items():
            if entry is type(part):
                return name
        raise InputError(f"{self.kind}={part!r}: {type(part).__name__} is not registered; known: {', '.join(self)}")

    def config(self, name: str) -> dict[str, Any]:
        """Return the options of an entry that have a default, and the defaults."""
        parameters = inspect.signature(self[name]).parameters.values()
        return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}

    def build(self, name: str, **options: Any) -> T:
        """Make an entry with the given options.

        Raises:
            InputError: on an unknown name, an unknown option, or an option value that the entry refuses.
        """
        entry = self[name]
        known = list(inspect.signature(entry).parameters)
        for option, value in options.items():
            if option not in known:
                raise InputError(
                    f"{option}={value!r}: {self.kind} {name!r} has no such option{hint(option, known)}"
                    f" its options: {', '.join(known) or 'none'}"
                )
        return entry(**options)

    def part(self, given: str | Mapping[str, Any] | T) -> T:
        """Return a part of something else: an entry by its name, by "name" and options, or what was built already.

        Raises:
            InputError: as :meth:`build`.
        """
        if isinstance(given, Mapping):
            require("name" in given, self.kind, dict(given), "a name, or a mapping of 'name' and options")
            return self.build(**given)
        return self.build(given) if isinstance(given, str) else given


_REGISTRIES: list[Registry[Any]] = []


def source_of(name: str) -> str | None:
    """Return the file or module outside of this project that registered something under ``name``; None if none did."""
    return next((source for registry in _REGISTRIES if (source := registry.source(name))), None)

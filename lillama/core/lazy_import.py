"""Run a callback when another module is first imported, without importing it."""

import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


class _OnImport(MetaPathFinder):
    """Stands before the finders for the sake of one module; gone as soon as that is found."""

    def __init__(self, name: str, action: Callable[[], None]) -> None:
        self.name, self.action = name, action

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self.name or self not in sys.meta_path:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_act(module: ModuleType) -> None:
                execute(module)
                self.action()

            spec.loader.exec_module = execute_and_act  # type: ignore[method-assign]
        return spec


def on_import(name: str, action: Callable[[], None]) -> None:
    """Call ``action`` when the module is imported, at the end of it; at once where it has been already."""
    if name in sys.modules:
        action()
    else:
        sys.meta_path.insert(0, _OnImport(name, action))

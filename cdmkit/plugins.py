"""Loading plugins: the built-in ones and those of installed distributions, through one door.

A plugin that cannot be loaded is a recorded fault. It stops nobody who does not need what it offers.
"""

from __future__ import annotations

import inspect
import re
import traceback
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from importlib import import_module
from importlib.metadata import entry_points
from typing import cast

import attrs
import pluggy

from cdmkit import __version__, hookspecs
from cdmkit.catalog import Catalog, Offer
from cdmkit.component import Component, option_of
from cdmkit.hookspecs import API_VERSION
from cdmkit.kinds import KINDS

BUILTIN: tuple[str, ...] = (
    "cdmkit.builtin.schedules",
    "cdmkit.builtin.densities",
    "cdmkit.builtin.losses",
    "cdmkit.builtin.weightings",
    "cdmkit.builtin.augmentations",
    "cdmkit.builtin.unet",
    "cdmkit.builtin.dit",
    "cdmkit.builtin.samplers",
    "cdmkit.builtin.heun",
    "cdmkit.builtin.spacings",
    "cdmkit.builtin.thresholds",
    "cdmkit.builtin.guidances",
    "cdmkit.builtin.shapes",
    "cdmkit.builtin.webdataset",
    "cdmkit.builtin.imagenet",
    "cdmkit.builtin.lsun",
    "cdmkit.builtin.cifar10",
    "cdmkit.builtin.folder",
    "cdmkit.builtin.reshard",
    "cdmkit.builtin.optimizers",
    "cdmkit.builtin.lr_schedules",
    "cdmkit.builtin.averages",
    "cdmkit.builtin.backends",
)
"""The modules that cdmkit's own components come from."""

GROUP = "cdmkit"
"""The entry-point group of plugins."""


@attrs.frozen
class Identity:
    """Which plugin: its name, the distribution it comes from and that one's version (both empty for an object passed in)."""

    name: str
    distribution: str = ""
    version: str = ""
    builtin: bool = False

    def __str__(self) -> str:
        return f"{self.distribution} {self.version}" if self.distribution else self.name


@attrs.frozen
class Plugin:
    """A plugin that works."""

    identity: Identity
    components: tuple[type[Component], ...]


@attrs.frozen
class PluginFault:
    """A plugin that does not work: why, in a line, and the traceback for its author."""

    identity: Identity
    message: str
    traceback: str

    def __str__(self) -> str:
        return f'plugin "{self.identity.name}" of {self.identity}: {self.message}'


@attrs.frozen(eq=False)
class Plugins:
    """All plugins, loaded. `manager.hook` calls the observers among them."""

    manager: pluggy.PluginManager
    loaded: tuple[Plugin, ...]
    faults: tuple[PluginFault, ...]
    catalog: Catalog


def load_plugins(builtin: Iterable[str] = BUILTIN, extra: Iterable[object] = ()) -> Plugins:
    """Load built-in modules, the entry points of installed distributions, and `extra` plugin objects, in this order."""
    manager = pluggy.PluginManager("cdmkit")
    manager.add_hookspecs(hookspecs)
    loaded: list[Plugin] = []
    faults: list[PluginFault] = []
    for identity, open_plugin in _candidates(builtin, extra):
        try:
            plugin = open_plugin()
            if not manager.is_registered(plugin):
                loaded.append(Plugin(identity, _register(manager, plugin)))
        except (Exception, SystemExit) as error:
            message = f"{type(error).__name__}: {' '.join(str(error).split())}"
            faults.append(PluginFault(identity, message, traceback.format_exc()))
    offers = (Offer(component, str(plugin.identity)) for plugin in loaded for component in plugin.components)
    return Plugins(manager, tuple(loaded), tuple(faults), Catalog.of(offers, map(str, faults)))


def _candidates(builtin: Iterable[str], extra: Iterable[object]) -> Iterator[tuple[Identity, Callable[[], object]]]:
    """Every plugin there is, and how to get at it."""
    for module in builtin:
        yield Identity(module, "cdmkit", __version__, builtin=True), partial(import_module, module)
    installed = []
    for entry in entry_points(group=GROUP):
        distribution = (entry.dist.name, entry.dist.version) if entry.dist else ()
        installed.append((Identity(entry.name, *distribution), entry.load))
    yield from sorted(installed, key=lambda candidate: (candidate[0].distribution, candidate[0].name))
    for plugin in extra:
        yield Identity(getattr(plugin, "__name__", type(plugin).__name__)), partial(_itself, plugin)


def _itself(plugin: object) -> object:
    return plugin


def _register(manager: pluggy.PluginManager, plugin: object) -> tuple[type[Component], ...]:
    """Register a plugin and return its components, or leave the manager as it was and raise."""
    api = getattr(plugin, "cdmkit_api", API_VERSION)
    if isinstance(api, int) and api != API_VERSION:
        raise ValueError(f"it is made for plugin API {api}, but this is cdmkit {__version__} with plugin API {API_VERSION}")
    try:
        manager.register(plugin)
        manager.check_pending()
        if not manager.get_hookcallers(plugin):
            raise ValueError("it implements no hook: mark its functions with @hookimpl")
        calls = manager.hook.cdmkit_components.get_hookimpls()
        offered = [item for call in calls if call.plugin is plugin for item in cast(Iterable[object], call.function())]
        return tuple(_checked(item) for item in offered)
    except BaseException:
        if manager.is_registered(plugin):
            manager.unregister(plugin)
        raise


def _checked(offered: object) -> type[Component]:
    """What a plugin offers, if it is a component class that a recipe can name and configure."""
    if not (isinstance(offered, type) and issubclass(offered, Component)):
        raise TypeError(f"cdmkit_components offers {offered!r}, which is not a component class")
    kind = KINDS.get(getattr(offered, "kind", ""))
    if kind is None or not issubclass(offered, kind):
        raise TypeError(f"{offered.__qualname__} is of no known kind: subclass one of {', '.join(KINDS)}")
    name = vars(offered).get("type_name")
    if not isinstance(name, str) or not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name):
        raise TypeError(f'{offered.__qualname__} has no usable name: decorate it with @component("lower-case-words")')
    if inspect.isabstract(offered):
        raise TypeError(f"{offered.__qualname__} lacks {', '.join(sorted(offered.__abstractmethods__))}")
    for field in attrs.fields(attrs.resolve_types(cast(type[attrs.AttrsInstance], offered))):
        if option_of(field) is None or field.name == "type":
            raise TypeError(f"{offered.__qualname__}.{field.name} is no option: declare it with option(...), under another name than type")
    return offered

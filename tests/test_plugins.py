"""Loading plugins: built-in modules, installed distributions, objects; and the broken ones among them."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cdmkit import __version__, events, hookspecs
from cdmkit.component import Component, component, option
from cdmkit.errors import SetupError
from cdmkit.hookspecs import API_VERSION, hook_name, hookimpl
from cdmkit.kinds import Augmentation, Schedule
from cdmkit.plugins import BUILTIN, Plugins, load_plugins
from tests.distribution import write_distribution
from tests.recipe.components import Line

Install = Callable[..., None]
EVENTS = [cls for _, cls in inspect.getmembers(events, inspect.isclass) if issubclass(cls, events.Event) and cls is not events.Event]

OFFER = """\
from cdmkit.component import component, option
from cdmkit.hookspecs import hookimpl
from cdmkit.kinds import Schedule

@component("{name}")
class Offered(Schedule):
    def alpha_bars(self): ...

@hookimpl
def cdmkit_components():
    return [Offered]
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Install a distribution with one plugin module, for the length of a test."""
    monkeypatch.syspath_prepend(tmp_path)
    return partial(write_distribution, tmp_path)


def plugin(**attributes: Any) -> types.SimpleNamespace:
    """A plugin object whose functions are marked as hooks."""
    marked = {name: hookimpl(value) if callable(value) else value for name, value in attributes.items()}
    return types.SimpleNamespace(**marked)


def only_fault(plugins: Plugins) -> str:
    """The message of the only fault."""
    (fault,) = plugins.faults
    return fault.message


def test_the_built_in_components_come_through_the_hooks() -> None:
    """Every built-in module is a plugin of the distribution cdmkit, and all work."""
    plugins = load_plugins()
    builtin = [loaded for loaded in plugins.loaded if loaded.identity.builtin]
    assert [loaded.identity.name for loaded in builtin] == list(BUILTIN)
    assert all(loaded.components and str(loaded.identity) == f"cdmkit {__version__}" for loaded in builtin)
    assert not [fault for fault in plugins.faults if fault.identity.builtin]


def test_installed_distributions_are_found_by_their_entry_points(install: Install) -> None:
    """With the distribution's name and version, through the same door."""
    install("cdmkit-more", OFFER.format(name="more"), version="3.2")
    plugins = load_plugins(builtin=())
    (loaded,) = (loaded for loaded in plugins.loaded if loaded.identity.distribution == "cdmkit-more")
    assert (loaded.identity.name, str(loaded.identity), loaded.identity.builtin) == ("cdmkit-more-plugin", "cdmkit-more 3.2", False)
    assert plugins.catalog.find("schedule", "more").type_name == "more"


@pytest.mark.parametrize("code", ["raise RuntimeError('boom')", "import no_such_module_anywhere", "def f(:", "raise SystemExit(3)"])
def test_a_plugin_that_cannot_be_imported_stops_no_other(install: Install, code: str) -> None:
    """It is a fault with distribution, version and traceback; others load, before it and after it."""
    install("a-good", OFFER.format(name="first"))
    install("b-bad", code, version="0.9")
    install("c-good", OFFER.format(name="last"))
    plugins = load_plugins(builtin=())
    (fault,) = plugins.faults
    assert (fault.identity.distribution, fault.identity.version) == ("b-bad", "0.9")
    assert "Traceback" in fault.traceback
    assert {"first", "last"} <= set(plugins.catalog.names("schedule"))
    with pytest.raises(SetupError, match=r'plugin "b-bad-plugin" of b-bad 0\.9'):
        plugins.catalog.find("schedule", "other")


def test_two_distributions_that_offer_one_name_are_both_named(install: Install) -> None:
    """Neither wins."""
    install("one", OFFER.format(name="same"))
    install("two", OFFER.format(name="same"))
    plugins = load_plugins(builtin=())
    assert plugins.faults == ()
    with pytest.raises(SetupError, match=r"one 1\.0 .* and two 1\.0"):
        plugins.catalog.find("schedule", "same")


def test_a_plugin_for_another_api_says_both_versions() -> None:
    """One for this version, or for none in particular, loads."""
    told = only_fault(load_plugins((), [plugin(cdmkit_api=API_VERSION + 1, cdmkit_components=lambda: [Line])]))
    assert f"plugin API {API_VERSION + 1}" in told
    assert f"plugin API {API_VERSION}" in told
    for attributes in ({}, {"cdmkit_api": API_VERSION}):
        assert load_plugins((), [plugin(cdmkit_components=lambda: [Line], **attributes)]).faults == ()


def test_a_misspelt_hook_is_a_fault_of_that_plugin_alone() -> None:
    """Those loaded after it work."""
    plugins = load_plugins((), [plugin(cdmkit_componets=lambda: [Line]), plugin(cdmkit_components=lambda: [Line])])
    assert "unknown hook 'cdmkit_componets'" in only_fault(plugins)
    assert plugins.catalog.names("schedule") == ["line"]


def test_a_hook_with_another_parameter_is_a_fault() -> None:
    """Pluggy's words are kept, on one line."""
    told = only_fault(load_plugins((), [plugin(cdmkit_progress=lambda happening: None)]))
    assert "happening" in told
    assert "\n" not in told


def test_a_plugin_without_hooks_is_a_fault() -> None:
    """Most likely it forgot the marker."""
    assert "@hookimpl" in only_fault(load_plugins((), [types.SimpleNamespace(cdmkit_components=list)]))


def test_components_that_raise_are_a_fault_and_leave_no_observer_behind() -> None:
    """A broken plugin is out as a whole."""
    seen: list[events.Event] = []
    plugins = load_plugins((), [plugin(cdmkit_components=lambda: [1 / 0], cdmkit_warned=lambda event: seen.append(event))])
    assert only_fault(plugins) == "ZeroDivisionError: division by zero"
    plugins.manager.hook.cdmkit_warned(event=events.Warned(message="x"))
    assert seen == []


class Undecorated(Schedule):
    """No component."""


class Inherited(Line):
    """A subclass of a component is none."""


@component("No Name")
class BadName(Schedule):
    """A name with a blank."""


@component("abstract")
class Unfinished(Augmentation):
    """Lacks `train`."""


@component("undeclared")
class Undeclared(Line):
    """A field without `option`."""

    extra: int = 3


@component("typed")
class Typed(Line):
    """An option that recipes use for the component's name."""

    type: str = option("x", help="clashes")


@pytest.mark.parametrize(
    ("offered", "words"),
    [
        (3, "not a component class"),
        (dict, "not a component class"),
        (Line(), "not a component class"),
        (Component, "no known kind"),
        (Undecorated, "no usable name"),
        (Inherited, "no usable name"),
        (BadName, "no usable name"),
        (Unfinished, "lacks train"),
        (Undeclared, "Undeclared.extra is no option"),
        (Typed, "Typed.type is no option"),
    ],
)
def test_what_is_offered_must_be_components(offered: Any, words: str) -> None:
    """Said when loading, with the name of the class."""
    plugins = load_plugins((), [plugin(cdmkit_components=lambda: [offered])])
    assert words in only_fault(plugins)
    assert plugins.catalog.names("schedule") == []


def test_objects_passed_in_observe() -> None:
    """An observer offers no components."""
    seen: list[events.Event] = []
    plugins = load_plugins((), [plugin(cdmkit_warned=lambda event: seen.append(event))])
    event = events.Warned(message="odd")
    getattr(plugins.manager.hook, hook_name(type(event)))(event=event)
    assert seen == [event]
    assert plugins.loaded[-1].components == ()


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: str(event.__name__))
def test_every_event_has_its_hook(event: type[events.Event]) -> None:
    """Named after the event, with one parameter of its type."""
    specification = getattr(hookspecs, hook_name(event))
    (parameter,) = inspect.signature(specification).parameters.values()
    assert (parameter.name, parameter.annotation) == ("event", f"events.{event.__name__}")


def test_there_is_no_hook_without_an_event() -> None:
    """But for the one that offers components."""
    names = {name for name in vars(hookspecs) if name.startswith("cdmkit_")}
    assert names == {"cdmkit_components", *map(hook_name, EVENTS)}
    assert len(EVENTS) > 5

"""What is on offer: component classes by kind and name, each with the distribution that owns it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import attrs

from cdmkit.component import Component
from cdmkit.errors import RecipeError, SetupError
from cdmkit.kinds import KINDS
from cdmkit.nearest import did_you_mean


@attrs.frozen
class Offer:
    """A component class and who offers it, such as "cdmkit 0.1.0"."""

    component: type[Component]
    owner: str


@attrs.frozen(eq=False)
class Catalog:
    """Every offered component. A name with two offers is usable by nobody; the other names go on working."""

    offers: Mapping[str, Mapping[str, tuple[Offer, ...]]]
    """By kind, then by name."""
    broken: tuple[str, ...] = ()
    """A line on each plugin that could not be loaded: what is missing may be its."""

    @classmethod
    def of(cls, offers: Iterable[Offer], broken: Iterable[str] = ()) -> Catalog:
        """Gather offers, in the order they came."""
        gathered: dict[str, dict[str, tuple[Offer, ...]]] = {kind: {} for kind in KINDS}
        for offer in offers:
            names = gathered[offer.component.kind]
            known = names.get(offer.component.type_name, ())
            if all(offer.component is not other.component for other in known):
                names[offer.component.type_name] = (*known, offer)
        return cls(gathered, tuple(broken))

    def names(self, kind: str) -> list[str]:
        """The names on offer for a kind, sorted."""
        return sorted(self.offers[kind])

    def find(self, kind: str, name: str) -> type[Component]:
        """The class of a name. Raises RecipeError for a name that looks misspelt, SetupError for one that is missing or offered twice."""
        match self.offers[kind].get(name, ()):
            case (offer,):
                return offer.component
            case ():
                raise self._missing(kind, name)
            case clash:
                owners = " and ".join(f"{offer.owner} ({_path(offer.component)})" for offer in clash)
                raise SetupError(f'{kind} "{name}" is offered by {owners}: uninstall one of them')

    def _missing(self, kind: str, name: str) -> RecipeError | SetupError:
        known = self.names(kind)
        hint = did_you_mean(name, known)
        if self.broken:
            return SetupError(f'no working plugin offers {kind} "{name}"{hint or ";"} it may be of a broken one: {"; ".join(self.broken)}')
        if hint:
            return RecipeError(f'unknown {kind} "{name}"{hint}')
        if others := [other for other, names in self.offers.items() if name in names]:
            return RecipeError(f'"{name}" names a {" and a ".join(others)}, not a {kind}')
        choice = ", ".join(known) or "none"
        return SetupError(f'no installed plugin offers {kind} "{name}": install the one that does, or choose one of: {choice}')


def _path(component: type[Component]) -> str:
    return f"{component.__module__}.{component.__qualname__}"

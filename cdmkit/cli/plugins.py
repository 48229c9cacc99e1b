"""`cdmkit plugins`."""

from __future__ import annotations

import click

from cdmkit.cli.options import json_option, print_json, print_table


@click.command()
@json_option
def plugins(as_json: bool) -> None:
    """List plugins: the distribution each comes from, how many components it offers, and what is wrong with broken ones."""
    from cdmkit.plugins import Identity, load_plugins

    def known(identity: Identity) -> dict[str, str]:
        return {"plugin": identity.name, "distribution": identity.distribution, "version": identity.version}

    found = load_plugins()
    if as_json:
        working = [{**known(p.identity), "components": [f"{c.kind} {c.type_name}" for c in p.components]} for p in found.loaded]
        broken = [{**known(f.identity), "fault": f.message, "traceback": f.traceback} for f in found.faults]
        print_json({"loaded": working, "broken": broken})
        return
    rows = [(*known(plugin.identity).values(), str(len(plugin.components)), "") for plugin in found.loaded]
    rows += [(*known(fault.identity).values(), "", fault.message) for fault in found.faults]
    print_table(("plugin", "distribution", "version", "components", "fault"), rows)

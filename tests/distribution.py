"""A distribution as pip would install it, small enough to write in a test."""

from __future__ import annotations

from pathlib import Path


def write_distribution(folder: Path, name: str, code: str, version: str = "1.0") -> None:
    """Install distribution `name` into `folder`, a folder of sys.path: one module of `code`, with the entry point `<name>-plugin`."""
    module = f"{name}_{folder.name}".replace("-", "_")
    (folder / f"{module}.py").write_text(code)
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "entry_points.txt").write_text(f"[cdmkit]\n{name}-plugin = {module}\n")

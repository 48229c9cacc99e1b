"""Starting `cdmkit run` several times at once: a process per device, a process per stage, a job per stage on a cluster.

Nothing here works on a run: it starts those that do, hands signals on to them and tells how they ended. Torch is not imported.
"""

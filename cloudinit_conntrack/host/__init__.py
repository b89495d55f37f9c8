"""The one door to the operating system: files, processes, ``/proc`` and ``/sys``.

Nothing outside this package opens a file of the host or starts a process.
"""

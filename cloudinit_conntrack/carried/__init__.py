"""The reduced program that user-data carries to a host without our package.

It is a program of its own: it imports nothing of ours, and :mod:`..userdata` packs its files into one.
What it does, it does as the whole program does; what it cannot do exactly it refuses, and changes
nothing.  Its journal is the whole program's, so that either can undo what the other did.  Actions are
the journal's own records (:func:`..actions.to_json`): no second form, because every byte is counted.
"""

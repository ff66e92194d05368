"""A drill with random faults: thousands of short runs, and an oracle that knows how each of them ended.

`tests/chaos.py` is the command. Read on in this order:

    plan         from a seed: which services, which faults, when. Pure
    application  the program that is run: it notes on disk what it does, and ends as it was told
    notes        what the applications noted, read back
    reports      what a manager reported: its log and its exit status, read back
    oracle       compares the two by the contract's table "What survives what". Pure
    tally        counts what the oracle found, and says what must be zero
    figures      the table that the tally makes (in tests/figures.py, shared by all suites)
    pair         server, launcher, waiters and managers as real processes
    relay        the network between them, which can be cut and held up
    inflict      carries out the planned faults
    census       processes, descriptors and memory, looked up in /proc
    memory       the control group in which the kernel kills for memory
    exercise     one drill from its first process to its last

The oracle shares no code with the programs: it reads their logs as a customer does, and the notes of the applications.
"""

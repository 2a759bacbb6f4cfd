"""Planted bugs of what changes while a request lives; a part of mutants.py."""

from __future__ import annotations

import sys

planting = sys.modules["core_simulation"].load("planting")
Mutant = planting.Mutant

S = "scheduler"
MUTANTS = (
    Mutant(
        "change_in_flight",
        S,
        """            req.changing = change
            self._changing.add(req.id)
            self._settle(req)""",
        """            if become(req, change):
                self._regrants[req.id] = req""",
    ),
    Mutant(
        "change_never_reaches_the_slot",
        S,
        """                self._regrants[req.id] = req""",
        """                pass""",
    ),
    Mutant(
        "change_waits_while_it_runs_on",
        S,
        """ if req.changing is None] if self._changing else able""",
        """] if self._changing else able""",
    ),
    Mutant(
        "quick_landing_of_a_changing_one",
        S,
        """        quick = finite and not self._changing""",
        """        quick = finite""",
    ),
    Mutant(
        "change_without_the_page_of_its_token",
        S,
        """ and edge and not self._next_page(req, []):""",
        """ and False:""",
    ),
    Mutant(
        "change_keeps_the_length",
        "prospect",
        """    req.max_len = max(change.max_len, len(req.tokens) + 1)
""",
        "",
    ),
    Mutant(
        "change_shorter_than_what_is_there",
        "prospect",
        """    req.max_len = max(change.max_len, len(req.tokens) + 1)
""",
        """    req.max_len = change.max_len
""",
    ),
    Mutant(
        "regrant_survives_a_pause",
        S,
        """            self._regrants.pop(req.id, None)
            req.slot = None""",
        """            req.slot = None""",
    ),
    Mutant(
        "change_outlives_its_request",
        S,
        """        self._changing.discard(req.id)
        if req.forkable""",
        """        if req.forkable""",
    ),
)

"""Planted bugs of pins and favours; a part of mutants.py."""

from __future__ import annotations

import sys

planting = sys.modules["core_simulation"].load("planting")
Mutant = planting.Mutant

MUTANTS = (
    Mutant(
        "stuck_behind_pins",
        "pins",
        """        if not self._pins:
            return False""",
        """        if self._pins or not self._pins:
            return False""",
    ),
    Mutant(
        "pin_broken_while_others_run",
        "admission",
        """if not fits and not self.core.running and self.core.pins.break_one():""",
        """if not fits and self.core.pins.break_one():""",
        within=200,
    ),
    Mutant(
        "favours_evicted_first",
        "prefix",
        """        return self._evict_of(False) or self._evict_of(True)""",
        """        return self._evict_of(True) or self._evict_of(False)""",
    ),
    Mutant(
        "favour_of_the_last_page_alone",
        "prefix",
        """            root, step = step, step.parent
        self._forget_empty_root(root)""",
        """            root, step = step, None
        self._forget_empty_root(root)""",
    ),
    Mutant(
        "favours_never_end",
        "pins",
        """            self.tree.unkeep(node)""",
        """            pass""",
    ),
    Mutant(
        "pins_beyond_their_share",
        "pins",
        """for page in pin.pages) > self.limit:""",
        """for page in pin.pages) > 2 * self.limit:""",
    ),
)

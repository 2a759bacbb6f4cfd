"""Planted bugs. Each is one edit of the source of the core; the simulation must catch every one.

An edit names text that occurs exactly once, so a mutant cannot rot in silence: when the source changes under
it, building it fails. Nothing is written to disk: the edited source is compiled in memory.

Known to be equivalent, and therefore not in the list:
- "a cached page is evicted while a request still maps it" (eviction ignores leases, counts kept right): the
  request's own reference keeps the page; only reuse suffers. What can be seen of it, a wrong count of idle
  pages, is planted as `eviction_takes_leased`.
- "pages are given out highest first": the order of pages is a wish of the backends, not a promise.
- "a cancelled request does not enter the tree when its last step lands": a smaller cache, never a wrong one.
- "least recently used is evicted last": the same, for the order of eviction.
- "growth of those just admitted is not reserved": more is packed and more taken back, a policy, no promise.
- "a request that loses its pages while this plan is made still gets its row in it": it gives them back one step
  later, when that row has landed.
- "`_leave_batch` before `_give_back`": both happen between two verbs; nobody looks in between.
"""

from __future__ import annotations

import sys

planting = sys.modules["core_simulation"].load("planting")
Mutant = planting.Mutant
changes = sys.modules["core_simulation"].load("mutants_of_changes")
classes = sys.modules["core_simulation"].load("mutants_of_classes")
forks = sys.modules["core_simulation"].load("mutants_of_forks")
pins = sys.modules["core_simulation"].load("mutants_of_pins")

S = "scheduler"
V = "victims"
A = "admission"
MUTANTS = (
    # -- ends and releases
    Mutant(
        "abort_leaks_pages",
        S,
        """        self._give_back(req)
        self._stay(req)
""",
        """        req.pages.clear()
        self._drop_lease(req)
        self._stay(req)
""",
    ),
    Mutant(
        "abort_frees_in_flight",
        S,
        """        req.finish = reason
        self._settle(req)""",
        """        req.finish = reason
        self._give_back(req)
        self._settle(req)""",
    ),
    Mutant(
        "lease_not_released",
        S,
        """            req.copy_from = None
        self._drop_lease(req)""",
        """            req.copy_from = None
        req.lease = None""",
    ),
    Mutant(
        "slot_given_back_in_flight",
        S,
        """            req.pausing = True
            self._settle(req)""",
        """            req.pausing = True
            if req.slot is not None:
                self.slots.give_back(req.slot)
            self._settle(req)""",
    ),
    Mutant(
        "slot_kept_by_paused",
        S,
        """        if req.pausing and req.phase is not Phase.PAUSED:
            self._leave_batch(req)
""",
        """        if req.pausing and req.phase is not Phase.PAUSED:
            self.running.pop(req.id, None)
            req.slot = None
""",
    ),
    Mutant(
        "double_release",
        S,
        """        if req.finish is not None:
            return
        req.finish = reason""",
        """        if req.phase is Phase.DONE:
            self._give_back(req)
        req.finish = reason""",
    ),
    Mutant(
        "last_reason_wins",
        S,
        """        if req.finish is not None:
            return
        req.finish = reason""",
        """        if req.phase is Phase.DONE:
            req.finish = FinishReason.STOP
            return
        req.finish = reason""",
    ),
    Mutant(
        "told_after_the_end",
        S,
        """        req.tokens.append(token)
        if ended:
            return None""",
        """        req.tokens.append(token)""",
    ),
    Mutant(
        "planned_after_the_end",
        S,
        """            if req.finish is None and not req.pausing and""",
        """            if not req.pausing and""",
    ),
    Mutant(
        "pause_ignored_while_decoding",
        S,
        """ is None and not req.pausing and not req.retracting and""",
        """ is None and not req.retracting and""",
    ),
    Mutant(
        "quick_landing_after_the_end",
        S,
        """                and req.finish is None
                and not (""",
        """                and not (""",
    ),
    Mutant(
        "quick_landing_of_a_pausing_one",
        S,
        """not (req.pausing or req.retracting or req.yielding)""",
        """not (req.retracting or req.yielding)""",
    ),
    Mutant(
        "quick_landing_of_one_taken_back",
        S,
        """not (req.pausing or req.retracting or req.yielding)""",
        """not (req.pausing or req.yielding)""",
    ),
    Mutant(
        "quick_landing_of_a_nan",
        S,
        """        finite = NON_FINITE not in tokens""",
        """        finite = True""",
    ),
    Mutant(
        "quick_landing_of_a_stop",
        S,
        """                and token not in req.params.stop_ids
""",
        "",
    ),
    Mutant(
        "quick_landing_of_the_last",
        S,
        """                and landed + 1 < req.max_len
""",
        "",
    ),
    # -- the prefix tree
    Mutant(
        "cached_before_landing",
        S,
        """        known = min(req.landed_len, len(req.tokens))
        while""",
        """        known = min(req.computed_len, len(req.tokens))
        while""",
    ),
    Mutant(
        "cached_one_token_too_long",
        S,
        """        known = min(req.landed_len, len(req.tokens))
        while""",
        """        known = min(req.landed_len + 1, len(req.tokens))
        while""",
    ),
    Mutant(
        "hit_of_the_whole_prompt",
        "request",
        """        known = len(self.tokens) - 1
""",
        """        known = len(self.tokens)
""",
    ),
    Mutant(
        "hit_one_token_too_long",
        S,
        """        req.computed_len = req.landed_len = hit * self.page_size
""",
        """        req.computed_len = req.landed_len = min(hit * self.page_size + 1, len(req.tokens) - 1)
""",
    ),
    Mutant(
        "salt_ignored_by_match",
        "prefix",
        """        node = self._roots.get(salt)
        if node is None:
            node = self._roots[salt] = PrefixNode(salt, (), -1, None)""",
        """        node = self._roots.get("")
        if node is None:
            node = self._roots[""] = PrefixNode("", (), -1, None)""",
    ),
    Mutant(
        "key_by_first_token",
        "prefix",
        """            child = node.children.get(tuple(tokens[index * size : (index + 1) * size]))
""",
        """            begin = tokens[index * size]
            child = next((c for k, c in node.children.items() if k[0] == begin), None)
""",
    ),
    Mutant(
        "hit_without_a_reference",
        S,
        """            self.pool.share(page, req.salt)
            req.pages.append(page)
        req.computed_len = req.landed_len = hit""",
        """            req.pages.append(page)
        req.computed_len = req.landed_len = hit""",
    ),
    Mutant(
        "eviction_takes_leased",
        "prefix",
        """node.attached and node.leases == 0 and not node.children and node.stamp == stamp):""",
        """node.attached and not node.children):""",
    ),
    Mutant(
        "eviction_forgets_the_parent",
        "prefix",
        """            parent.stamp = max(parent.stamp, node.stamp)
            self._offer(parent)""",
        """            parent.stamp = max(parent.stamp, node.stamp)""",
    ),
    Mutant(
        "tree_keeps_no_reference",
        "prefix",
        """            self.pool.share(page, parent.salt)
            child =""",
        """            child =""",
    ),
    Mutant(
        "roots_pile_up",
        "prefix",
        """            self._roots.pop(node.salt, None)""",
        """            pass""",
    ),
    # -- retraction, pause, resume
    Mutant(
        "retraction_drops_the_last_token",
        S,
        """            self._give_back(req)
            req.computed_len = req.landed_len = 0""",
        """            self._give_back(req)
            if req.output_len:
                req.tokens.pop()
                req.total_len -= 1
            req.computed_len = req.landed_len = 0""",
    ),
    Mutant(
        "oldest_retracted_first",
        V,
        """    victim = max(running.values(), key=worth, default=None)""",
        """    victim = min(running.values(), key=worth, default=None)""",
        within=200,
    ),
    Mutant(
        "running_retracted_before_paused",
        V,
        """    for held in (paused, waiting):
        holders =""",
        """    for held in ():
        holders =""",
        within=200,
    ),
    Mutant(
        "stuck_behind_a_paused_holder",
        V,
        """    return max(holders, key=worth, default=None)""",
        """    return None""",
    ),
    Mutant(
        "stuck_on_its_own_pages",
        V,
        """        return head
""",
        """        return None
""",
        within=400,
    ),
    Mutant(
        "retracted_twice_in_flight",
        V,
        """    if any(map(_goes, running.values())):
        return None
    promised""",
        """    promised""",
        within=400,
    ),
    Mutant(
        "retracted_goes_last",
        "line",
        """        back.move_to_end(req.id, last=False)""",
        """        pass""",
        within=200,
    ),
    Mutant(
        "pause_frees_pages",
        S,
        """            self.paused[req.id] = req
            req.phase = Phase.PAUSED""",
        """            self.paused[req.id] = req
            for page in req.pages:
                self.pool.drop(page)
            req.phase = Phase.PAUSED""",
    ),
    Mutant(
        "pause_leaves_it_in_line",
        S,
        """            self.waiting.leave(req)
            self.paused[req.id] = req""",
        """            self.paused[req.id] = req""",
    ),
    Mutant(
        "resume_forgets_the_line",
        S,
        """            del self.paused[req.id]
            self._wait_first(req)""",
        """            self._wait_first(req)""",
    ),
    # -- limits and ends of an answer
    Mutant(
        "oversized_admitted",
        S,
        """        return self.pool.count * self.page_size + 1""",
        """        return self.pool.count * self.page_size + 2""",
    ),
    Mutant(
        "largest_refused",
        S,
        """        if req.max_len > self.max_tokens:""",
        """        if req.max_len >= self.max_tokens:""",
    ),
    Mutant(
        "waiting_limit_off_by_one",
        S,
        """        if len(self.waiting) >= self.waiting_limit:""",
        """        if len(self.waiting) > self.waiting_limit:""",
    ),
    Mutant(
        "budget_exceeded",
        S,
        """        step.take(PlanRow(req.id, req.slot, start, count, ids, last, images))""",
        """        step.take(PlanRow(req.id, req.slot, start, count, ids, last, images))
        step.room += count - 1""",
    ),
    Mutant(
        "budget_of_the_step_ignored",
        S,
        """OpenPlan(self.chunk_tokens if budget is None else budget, price)""",
        """OpenPlan(budget or self.chunk_tokens, price)""",
    ),
    Mutant(
        "sample_in_mid_prompt",
        S,
        """        last, ids = start + count == req.total_len, tuple""",
        """        last, ids = start + count >= req.total_len - 1, tuple""",
    ),
    Mutant(
        "stop_ignored_after_resume",
        S,
        """        if token in req.params.stop_ids and""",
        """        if req.retractions == 0 and token in req.params.stop_ids and""",
    ),
    Mutant(
        "stop_despite_minimum",
        S,
        """req.output_len > req.params.min_tokens:""",
        """req.output_len >= req.params.min_tokens:""",
    ),
    Mutant(
        "stop_counts_from_the_prompt",
        S,
        """req.output_len > req.params.min_tokens:""",
        """len(req.tokens) > req.params.min_tokens:""",
    ),
    Mutant(
        "length_off_by_one",
        S,
        """        elif len(req.tokens) == req.max_len:""",
        """        elif len(req.tokens) >= req.max_len - 1:""",
    ),
    Mutant(
        "one_row_beyond_the_length",
        S,
        """ and req.total_len < req.max_len
""",
        """ and len(req.tokens) < req.max_len
""",
    ),
    # -- non-finite rows
    Mutant(
        "nan_told_as_a_token",
        S,
        """            req.finish = FinishReason.ERROR
            return Retired(req, None, req.finish)""",
        """            req.finish = FinishReason.STOP
            return Retired(req, None, req.finish)""",
    ),
    Mutant(
        "nan_page_stays_cached",
        "distrust",
        """        tree.condemn(req.lease)""",
        """        tree.release(req.lease)""",
    ),
    Mutant(
        "nan_of_a_cancelled_request_is_cached",
        S,
        """        if token == NON_FINITE and not req.spoilt:
            distrust(req, self.gallery, self.tree)
        if req.spoilt:""",
        """        if token == NON_FINITE and not ended:
            distrust(req, self.gallery, self.tree)
        elif token == NON_FINITE:
            req.total_len -= 1
            return None
        if req.spoilt:""",
        within=200,
    ),
    Mutant(
        "condemned_page_leaks",
        "prefix",
        """        self.idle_pages -= node.leases == 0
        self.pool.drop(node.page)""",
        """        self.idle_pages -= node.leases == 0
        if node.parent is not None and node.parent.attached:
            self.pool.drop(node.page)""",
    ),
    Mutant(
        "history_of_the_prompt_alone",
        "prospect",
        """    history = tuple(req.tokens) if""",
        """    history = tuple(req.tokens[: req.prompt_len]) if""",
    ),
    # -- pools
    Mutant(
        "freed_page_keeps_its_tenant",
        "pages",
        """            self._salts[page] = None
            heapq""",
        """            heapq""",
    ),
    Mutant(
        "shared_page_freed_at_once",
        "pages",
        """        self._refs[page] -= 1
        if self._refs[page] == 0:
            self._salts""",
        """        self._refs[page] -= 1
        if self._refs[page] <= 1:
            self._refs[page] = 0
            self._salts""",
    ),
    Mutant(
        "admission_without_room",
        A,
        """        return need + self.growth(req, self.core._pages_for(len(req.tokens))) + reserved <= available
""",
        """        return True
""",
    ),
    Mutant(
        "decode_grows_without_a_patch",
        S,
        """        patches.append(PagePatch(req.slot, len(req.pages), page))
""",
        "",
    ),
    Mutant(
        "grant_without_the_new_pages",
        "prospect",
        """    pages, guided = tuple(req.pages), req""",
        """    pages, guided = tuple(req.pages[:1]), req""",
    ),
    *changes.MUTANTS,
    *forks.MUTANTS,
    *classes.MUTANTS,
    *pins.MUTANTS,
)


def named(name: str) -> planting.Mutant:
    return next(mutant for mutant in MUTANTS if mutant.name == name)

"""regrow against brute force: what can be removed from small random networks is found by trying every set of indices.

Two things decide, and neither knows anything of labels, equalities, slabs or rectangles. One is torch itself: the
network with the indices deleted has to run. The other is a reference interpreter in plain numpy that keeps every shape
and marks what is absent as NaN (``oracle_reference.py``): sums, means, norms and softmax run over what is present,
data movement carries the NaNs along, and what meets place by place must be absent at the same places. A removal is
right when *every value* that the smaller network computes on its way is what is left of the reference's, on batches of
2 and 3 and with two draws of weights. So it is plain what a removal means where silencing isn't removing (softmax,
means, normalisation), and no luck at the output can hide a value that has slipped out of line.

All subsets of the labels are tried: the rows of weights that make hidden features, at most 14. Columns, biases and
scales follow what they meet; the reference finds them, and what regrow says must agree index by index. One meaning is
given and not found: the parts of an equal split stay equal.

Claims: each unit that regrow offers is a minimal set that force finds. Each minimal set is offered, if three or more
of its form stand side by side, and but for some operations (``INCOMPLETE``). Random unions of units can be removed as
well, of one axis and of several. Pruning through regrow's own call gives the network that is left. What was there is
what is left of a grown network without its new units, and each of these is a unit. Exact axes show none of it at the
output. What tensors do to units (their roles) is what the program says. The same holds of no mutilated regrow: leaving
out any one relation makes one of these claims fail, with the proof or, where that finds it again, without.
"""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st

from oracle_claims import Case, differences
from oracle_fixed import FOUND, KINDS, PROGRAMS
from oracle_graphs import OPS, Program
from oracle_mutants import MUTANTS, unproven
from oracle_parts import PARTS, programs

#: Programs for each part.
EXAMPLES = 4

#: Operations with which regrow may offer less than all. Where some units can't go since positions are literal, it
#: refuses their axis; and two features' product belongs to both, while units of an axis are disjoint.
INCOMPLETE = {"slice", "part_in_place", "select", "roll", "gram", "outer"}


@pytest.mark.parametrize("part", PARTS)
@settings(
    max_examples=EXAMPLES, deadline=None, derandomize=True, database=None, phases=[Phase.generate],
    suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow],
)  # fmt: skip
@given(st.data())
def test_regrow_offers_what_force_finds(part: str, data: st.DataObject) -> None:
    program = data.draw(programs(part))
    assume(program is not None)
    assert program is not None
    assert PARTS[part].op in _ops(program)
    _agree(Case.of(program))


def _ops(program: Program) -> set[str]:
    return {step.op for _, step in program.steps()}


def _agree(case: Case) -> None:
    found = list(differences(case, complete=not _ops(case.program) & INCOMPLETE))
    assert not found, "\n".join([str(case.program), *found])


def test_each_operation_occurs() -> None:
    assert set().union({kind.op for kind in PARTS.values()}, *map(_ops, PROGRAMS.values())) == set(OPS)


@cache
def _case(name: str) -> Case:
    return Case.of(PROGRAMS[name], KINDS.get(name, ()))


@pytest.mark.parametrize("name", PROGRAMS)
def test_fixed_programs_have_what_force_finds(name: str) -> None:
    _agree(_case(name))
    assert _case(name).minimal


@pytest.mark.parametrize("name", FOUND)
def test_what_random_programs_found_stays_right(name: str) -> None:
    _agree(Case.of(FOUND[name]))


@pytest.mark.parametrize("name", sorted({mutant.shown_by for mutant in MUTANTS.values() if mutant.alone}))
def test_relations_alone_say_what_force_finds(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that it is the relation left out that shows, with no proof to mend it."""
    unproven(monkeypatch)
    _agree(_case(name))


@pytest.mark.parametrize("name", MUTANTS)
@pytest.mark.parametrize("proof", [True, False])
def test_without_one_relation_regrow_is_wrong(name: str, proof: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant = MUTANTS[name]
    if not proof:
        unproven(monkeypatch)
    mutant.patch(monkeypatch)
    found = next(differences(_case(mutant.shown_by)), None)
    if proof and mutant.mended:
        assert found is None, "the proof alone finds it again"
    else:
        assert found is not None

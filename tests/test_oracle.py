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
of its form stand side by side. Random unions of units can be removed as well, of one axis and of several; pruning and
growing through regrow's own calls gives those networks; and exact axes don't show it at the output. The same holds of
no mutilated regrow: leaving out any one relation makes one of these claims fail.
"""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st

from oracle_claims import Case, differences
from oracle_graphs import OPS
from oracle_mutants import KINDS, MUTANTS, PROGRAMS, unproven
from oracle_parts import PARTS, programs

#: Programs for each part.
EXAMPLES = 4

#: Where single units can't go since positions are literal, regrow refuses all of an axis: it may offer less.
POSITIONAL = {"slice", "roll"}


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
    ops = {step.op for _, step in program.steps()}
    assert PARTS[part].op in ops
    # Two features' product belongs to both of them, while units of an axis are disjoint: less may be offered.
    complete = part != "gram" and not ops & POSITIONAL
    found = list(differences(Case.of(program), complete=complete))
    assert not found, "\n".join([str(program), *found])


def test_each_operation_occurs() -> None:
    fixed = {step.op for program in PROGRAMS.values() for _, step in program.steps()}
    assert {kind.op for kind in PARTS.values()} | fixed == set(OPS)


@cache
def _case(name: str) -> Case:
    return Case.of(PROGRAMS[name], KINDS.get(name, ()))


@pytest.mark.parametrize("name", PROGRAMS)
def test_fixed_programs_have_what_force_finds(name: str) -> None:
    assert list(differences(_case(name))) == []
    assert _case(name).minimal


@pytest.mark.parametrize("name", sorted({mutant.shown_by for mutant in MUTANTS.values() if mutant.alone}))
def test_relations_alone_say_what_force_finds(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that it is the relation left out that shows, with no proof to mend it."""
    unproven(monkeypatch)
    assert list(differences(_case(name))) == []


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

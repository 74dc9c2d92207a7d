"""The program of a fit: the model is read and compiled once, and bound to the data that a verb is asked about."""

from __future__ import annotations

from typing import Any

from ..base.rng import forked
from ..data.schema import Dataset
from ..data.structures import fields_of, is_structure
from ..linear_gaussian.marginalize import Marginal, has_new_gaps, read_exact, varies_by_row
from ..program.checks import check_values
from ..program.compiler import compile_program
from ..program.program import Program
from ..trace.structure import Structure, read
from .base import Fitted


def bound(fit: Fitted, dataset: Dataset, drawn: bool = False) -> Program:
    """The program of a fit on (new) data. Call inside `engine_state`; draws come out the same whether it was there."""
    held, values, program = fit.compiled, dataset.values, program_of(fit, drawn)
    if drawn in held.own and _is_same(held.own[drawn].data, values):
        return held.own[drawn]
    if program is None:
        with forked():
            program = compiled_on(fit, dataset, drawn)
        if program.num_rows > 1 and not varies_by_row(program.model):  # of one row nobody can tell what depends on it
            held.programs[drawn] = program
    elif program.centred_by_group or not _is_same(program.data, values):
        with forked():
            structure = program.structure_on(values)
            anew = not drawn and has_new_gaps(program.structure, structure)
            program = compiled_on(fit, dataset) if anew else program.on(values, structure)
        check_values(structure, dataset.schema)
    if fit.data is not None and _is_same(fit.data.values, values):
        held.own[drawn] = program
    return program


def program_of(fit: Fitted, drawn: bool = False) -> Program | None:
    """The program of a fit, on whichever rows, where it is there."""
    found = fit.compiled.programs
    other = found.get(not drawn)
    same = other is not None and not other.structure.continuous and not isinstance(other.model, Marginal)
    return found.get(drawn, other if same else None)


def structure_on(fit: Fitted, dataset: Dataset) -> Structure:
    """The structure of a fit's model as it is written, on (new) data; read where no program knows it."""
    program, values = program_of(fit, drawn=True), dataset.values
    structure = read(fit.pair.model, values, fit.params) if program is None else program.structure_on(values)
    check_values(structure, dataset.schema)
    return structure


def compiled_on(fit: Fitted, dataset: Dataset, drawn: bool = False) -> Program:
    """The program read from the model."""
    model, values, centers = fit.pair.model, dataset.values, fit.compiled.centers
    if drawn:
        structure = structure_on(fit, dataset)
        return compile_program(model, values, structure, given=structure.continuous, centers=centers)
    model, structure = read_exact(model, values, fit.params)
    check_values(structure, dataset.schema)
    return compile_program(model, values, structure, centers=centers)


def _is_same(values: Any, other: Any) -> bool:
    """Whether both are the same tensors, not copies of them."""
    if values is other:
        return True
    if type(values) is not type(other) or not is_structure(values):
        return False
    theirs = fields_of(other)
    return all(value is theirs[name] for name, value in fields_of(values).items())

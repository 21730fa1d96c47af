// SPDX-License-Identifier: MIT OR Apache-2.0
//! Random changes of a program, as a patch makes them.

use crate::choices::Choices;
use crate::program::{Function, Program, Statement, Value};

/// Changes `program` once.
pub(crate) fn edit(choices: &mut Choices, program: &mut Program) {
    let at = choices.index(program.functions.len());
    match choices.below(12) {
        0 | 1 => replace(choices, program, at),
        2 => insert(choices, program, at),
        3 => remove(choices, program, at),
        4 => add_function(choices, program),
        5 => {
            let id = program.add_variable(choices, format!("new_state{}", program.variables.len()));
            push(choices, program, at, Statement::Bump(id, Value::Argument));
        }
        6 => {
            let function = &mut program.functions[at];
            if function.count.is_none() {
                function.count = Some(choices.below(3).into());
                push(choices, program, at, Statement::Count(Value::Argument));
            }
        }
        7 => {
            let id = program.add_table(choices);
            push(choices, program, at, Statement::Look(id, Value::Argument));
        }
        8 => {
            let table = choices.index(program.tables.len());
            program.tables[table].values[choices.index(4)] = choices.below(1000).into();
        }
        9 if program.is_const => {
            let at = choices.index(program.handlers.len());
            program.handlers[at] = choices.below(2);
        }
        10 => {
            let other = choices.index(program.functions.len());
            program.functions.swap(at, other);
        }
        _ => change_head(choices, program, at),
    }
}

fn push(choices: &mut Choices, program: &mut Program, at: usize, statement: Statement) {
    let body = &mut program.functions[at].body;
    body.insert(choices.index(body.len() + 1), statement);
}

fn insert(choices: &mut Choices, program: &mut Program, at: usize) {
    let statement = program.statement(choices, at, 1);
    push(choices, program, at, statement);
}

fn remove(choices: &mut Choices, program: &mut Program, at: usize) {
    let body = &mut program.functions[at].body;
    if !body.is_empty() {
        body.remove(choices.index(body.len()));
    }
}

fn replace(choices: &mut Choices, program: &mut Program, at: usize) {
    let statement = program.statement(choices, at, 1);
    let body = &mut program.functions[at].body;
    if body.is_empty() {
        return;
    }
    let old = choices.index(body.len());
    // Preferably deep inside.
    match &mut body[old] {
        Statement::If(_, yes, _) if !yes.is_empty() => yes[0] = statement,
        Statement::Switch(_, cases) => cases[0] = vec![statement],
        old => *old = statement,
    }
}

/// A function that may call the lowest one, and a call of it.
fn add_function(choices: &mut Choices, program: &mut Program) {
    let id = u32::try_from(program.functions.len()).expect("few");
    let at = choices.index(program.functions.len() + 1);
    let function = Function {
        id,
        name: format!("new_helper{id}"),
        rank: 11,
        is_static: !choices.one_in(3),
        is_inline: choices.one_in(3),
        count: choices.one_in(2).then(|| choices.below(3).into()),
        body: Vec::new(),
    };
    program.functions.insert(at, function);
    for _ in 0..choices.between(1, 3) {
        insert(choices, program, at);
    }
    let callers: Vec<usize> = (0..program.functions.len())
        .filter(|&at| program.functions[at].rank > 11)
        .collect();
    let caller = callers[choices.index(callers.len())];
    let call = Statement::Call(id, choices.one_in(4), Value::Argument);
    push(choices, program, caller, call);
}

/// Another name, another scope, or whether it may be inlined.
fn change_head(choices: &mut Choices, program: &mut Program, at: usize) {
    let function = &mut program.functions[at];
    if function.name.starts_with("entry") {
        return;
    }
    match choices.below(3) {
        0 => function.name = format!("renamed{at}"),
        1 => function.is_static = !function.is_static,
        _ => function.is_inline = !function.is_inline,
    }
}

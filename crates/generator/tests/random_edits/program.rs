// SPDX-License-Identifier: MIT OR Apache-2.0
//! Small C programs: as C, and as what they compute.
//!
//! Every statement changes the result of its function in a way that can be
//! undone, so that no compiler finds a variable that nobody can see.

use crate::choices::Choices;
use std::collections::BTreeMap;
use std::fmt::{self, Display, Write as _};

/// Declared by every program, defined by the hypervisor around it.
const PRELUDE: &str = "\
    typedef unsigned long u64;\n\
    u64 digest(const char *text);\n\
    u64 through(u64 (*function)(u64), u64 x);\n";

/// How many functions of a program the hypervisor calls.
pub(crate) const ENTRIES: u32 = 3;

/// The highest rank of a handler.
const HANDLERS: u32 = 20;

/// How many elements a table has.
const TABLE: usize = 4;

#[derive(Debug, Clone, Default)]
pub(crate) struct Program {
    /// In the order of the source.
    pub(crate) functions: Vec<Function>,
    pub(crate) variables: Vec<Variable>,
    pub(crate) tables: Vec<Table>,
    /// Functions of the lowest ranks, in a table of pointers.
    pub(crate) handlers: Vec<u32>,
    /// Whether that table is constant.
    pub(crate) is_const: bool,
}

#[derive(Debug, Clone)]
pub(crate) struct Function {
    /// What it is, whatever its name and place.
    pub(crate) id: u32,
    pub(crate) name: String,
    /// It calls only functions of a lower rank.
    pub(crate) rank: u32,
    pub(crate) is_static: bool,
    pub(crate) is_inline: bool,
    /// The initial value of the static variable `count` that it may have.
    pub(crate) count: Option<u64>,
    pub(crate) body: Vec<Statement>,
}

#[derive(Debug, Clone)]
pub(crate) struct Variable {
    pub(crate) id: u32,
    pub(crate) name: String,
    pub(crate) initial: u64,
    pub(crate) is_static: bool,
}

#[derive(Debug, Clone)]
pub(crate) struct Table {
    pub(crate) id: u32,
    pub(crate) values: [u64; TABLE],
}

/// An expression without effects.
#[derive(Debug, Clone)]
pub(crate) enum Value {
    Argument,
    Result,
    Count,
    Constant(u64),
    Variable(u32),
    Both(char, Box<Value>, Box<Value>),
}

#[derive(Debug, Clone)]
pub(crate) enum Statement {
    /// Adds a value to the result.
    Add(Value),
    /// Adds what a function returns, called by name or through a pointer.
    Call(u32, bool, Value),
    /// Adds the digest of a text.
    Text(String),
    /// Adds to a variable, and the variable to the result.
    Bump(u32, Value),
    /// Adds to the function's own variable, and that to the result.
    Count(Value),
    /// Adds an element of a table.
    Look(u32, Value),
    /// Adds what a handler returns.
    Handle(Value, Value),
    If(Value, Vec<Statement>, Vec<Statement>),
    Switch(Value, Vec<Vec<Statement>>),
}

impl Program {
    pub(crate) fn random(choices: &mut Choices) -> Self {
        let mut program = Self::default();
        for id in 0..choices.between(1, 3) {
            program.add_variable(choices, format!("state{id}"));
        }
        program.add_table(choices);
        program.handlers = vec![choices.below(2), choices.below(2), choices.below(2)];
        program.is_const = choices.one_in(2);
        for id in 0..choices.between(ENTRIES + 1, ENTRIES + 4) {
            let function = Function {
                id,
                name: String::new(),
                rank: 10 * (id + 1),
                is_static: true,
                is_inline: choices.one_in(3),
                count: choices.one_in(2).then(|| choices.below(3).into()),
                body: Vec::new(),
            };
            program.functions.push(function);
        }
        let helpers = program.functions.len() - ENTRIES as usize;
        for at in 0..program.functions.len() {
            let body = program.statements(choices, at, 2);
            let function = &mut program.functions[at];
            function.body = body;
            function.name = format!("helper{at}");
            if let Some(entry) = at.checked_sub(helpers) {
                function.name = format!("entry{entry}");
                function.is_static = false;
                function.is_inline = false;
            }
        }
        program
    }

    pub(crate) fn add_variable(&mut self, choices: &mut Choices, name: String) -> u32 {
        let id = u32::try_from(self.variables.len()).expect("few");
        let variable = Variable {
            id,
            name,
            initial: choices.below(3).into(),
            is_static: choices.one_in(2),
        };
        let at = choices.index(self.variables.len() + 1);
        self.variables.insert(at, variable);
        id
    }

    pub(crate) fn add_table(&mut self, choices: &mut Choices) -> u32 {
        let id = u32::try_from(self.tables.len()).expect("few");
        let values = [(); TABLE].map(|()| choices.below(1000).into());
        let at = choices.index(self.tables.len() + 1);
        self.tables.insert(at, Table { id, values });
        id
    }

    /// Statements for the function at `at`, nested up to `depth` times.
    fn statements(&self, choices: &mut Choices, at: usize, depth: u32) -> Vec<Statement> {
        let count = choices.between(1, 3);
        (0..count)
            .map(|_| self.statement(choices, at, depth))
            .collect()
    }

    /// A statement for the function at `at`.
    pub(crate) fn statement(&self, choices: &mut Choices, at: usize, depth: u32) -> Statement {
        let function = &self.functions[at];
        let mut callees = self.functions.iter().filter(|f| f.rank < function.rank);
        let value = |choices: &mut Choices| self.value(choices, function, 2);
        match choices.below(if depth > 0 { 10 } else { 8 }) {
            1 | 2 if function.rank > 10 => {
                let count = callees.clone().count();
                let callee = callees.nth(choices.index(count)).expect("a callee");
                Statement::Call(callee.id, choices.one_in(4), value(choices))
            }
            3 => Statement::Text(format!("text {}", choices.below(40))),
            4 => Statement::Bump(self.variable(choices), value(choices)),
            5 if function.count.is_some() => Statement::Count(value(choices)),
            6 => {
                let table = self.tables[choices.index(self.tables.len())].id;
                Statement::Look(table, value(choices))
            }
            7 if function.rank > HANDLERS => Statement::Handle(value(choices), value(choices)),
            8 => Statement::If(
                value(choices),
                self.statements(choices, at, depth - 1),
                self.statements(choices, at, depth - 1),
            ),
            9 => {
                let cases = choices.between(3, 7);
                let body = |_| self.statements(choices, at, depth - 1);
                let cases = (0..cases).map(body).collect();
                Statement::Switch(value(choices), cases)
            }
            _ => Statement::Add(value(choices)),
        }
    }

    fn variable(&self, choices: &mut Choices) -> u32 {
        self.variables[choices.index(self.variables.len())].id
    }

    fn value(&self, choices: &mut Choices, function: &Function, depth: u32) -> Value {
        const OPERATORS: [char; 7] = ['+', '-', '*', '^', '&', '|', '<'];
        match choices.below(if depth > 0 { 7 } else { 5 }) {
            1 => Value::Result,
            2 => Value::Constant(choices.below(5000).into()),
            3 => Value::Variable(self.variable(choices)),
            4 if function.count.is_some() => Value::Count,
            5 | 6 => {
                let operator = OPERATORS[choices.index(OPERATORS.len())];
                let a = self.value(choices, function, depth - 1);
                let b = self.value(choices, function, depth - 1);
                Value::Both(operator, Box::new(a), Box::new(b))
            }
            _ => Value::Argument,
        }
    }

    fn function(&self, id: u32) -> &Function {
        let mut functions = self.functions.iter();
        functions.find(|f| f.id == id).expect("a function")
    }
}

impl Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(PRELUDE)?;
        for variable in &self.variables {
            let scope = if variable.is_static { "static " } else { "" };
            writeln!(f, "{scope}u64 {} = {};", variable.name, variable.initial)?;
        }
        for table in &self.tables {
            let [a, b, c, d] = table.values;
            writeln!(
                f,
                "static const u64 table{}[] = {{ {a}, {b}, {c}, {d} }};",
                table.id
            )?;
        }
        let head = |function: &Function| {
            let scope = if function.is_static { "static " } else { "" };
            let inline = if function.is_inline {
                ""
            } else {
                "__attribute__((noinline)) "
            };
            format!("{inline}{scope}u64 {}(u64 x)", function.name)
        };
        for function in &self.functions {
            writeln!(f, "{};", head(function))?;
        }
        let names = self
            .handlers
            .iter()
            .map(|&id| self.function(id).name.as_str());
        let names = names.collect::<Vec<_>>().join(", ");
        let constant = if self.is_const { "const " } else { "" };
        writeln!(
            f,
            "static u64 (*{constant}handlers[])(u64) = {{ {names} }};"
        )?;
        for function in &self.functions {
            let mut text = String::new();
            write_all(&mut text, self, &function.body, 1)?;
            let count = match function.count {
                Some(initial) => format!("    static u64 count = {initial};\n"),
                None => String::new(),
            };
            let head = head(function);
            write!(
                f,
                "{head}\n{{\n{count}    u64 r = x;\n{text}    return r;\n}}\n"
            )?;
        }
        Ok(())
    }
}

fn write_all(
    out: &mut String,
    program: &Program,
    statements: &[Statement],
    depth: usize,
) -> fmt::Result {
    let indent = "    ".repeat(depth);
    let value = |value: &Value| Shown(program, value).to_string();
    for statement in statements {
        match statement {
            Statement::Add(v) => writeln!(out, "{indent}r += {};", value(v)),
            Statement::Call(callee, pointer, v) => {
                let name = &program.function(*callee).name;
                let v = value(v);
                match pointer {
                    true => writeln!(out, "{indent}r += through({name}, {v});"),
                    false => writeln!(out, "{indent}r += {name}({v});"),
                }
            }
            Statement::Text(text) => writeln!(out, "{indent}r += digest(\"{text}\");"),
            Statement::Bump(variable, v) => {
                let name = Shown(program, &Value::Variable(*variable)).to_string();
                writeln!(out, "{indent}{name} += {}; r += {name};", value(v))
            }
            Statement::Count(v) => writeln!(out, "{indent}count += {}; r += count;", value(v)),
            Statement::Look(table, v) => {
                writeln!(out, "{indent}r += table{table}[{} % {TABLE}];", value(v))
            }
            Statement::Handle(which, v) => {
                let (which, count) = (value(which), program.handlers.len());
                writeln!(
                    out,
                    "{indent}r += handlers[{which} % {count}]({});",
                    value(v)
                )
            }
            Statement::If(condition, yes, no) => {
                writeln!(out, "{indent}if ( {} & 1 )\n{indent}{{", value(condition))?;
                write_all(out, program, yes, depth + 1)?;
                writeln!(out, "{indent}}}\n{indent}else\n{indent}{{")?;
                write_all(out, program, no, depth + 1)?;
                writeln!(out, "{indent}}}")
            }
            Statement::Switch(v, cases) => {
                writeln!(
                    out,
                    "{indent}switch ( {} % {} )\n{indent}{{",
                    value(v),
                    cases.len()
                )?;
                for (number, case) in cases.iter().enumerate() {
                    writeln!(out, "{indent}case {number}:")?;
                    write_all(out, program, case, depth + 1)?;
                    writeln!(out, "{indent}    break;")?;
                }
                writeln!(out, "{indent}}}")
            }
        }?;
    }
    Ok(())
}

/// A value as C.
struct Shown<'a>(&'a Program, &'a Value);

impl Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self.1 {
            Value::Argument => f.write_str("x"),
            Value::Result => f.write_str("r"),
            Value::Count => f.write_str("count"),
            Value::Constant(value) => write!(f, "{value}ul"),
            Value::Variable(id) => {
                let mut variables = self.0.variables.iter();
                let variable = variables.find(|v| v.id == *id);
                f.write_str(&variable.expect("a variable").name)
            }
            Value::Both(operator, a, b) => {
                write!(f, "({} {operator} {})", Shown(self.0, a), Shown(self.0, b))
            }
        }
    }
}

/// What a running program remembers.
#[derive(Debug, Clone, Default)]
pub(crate) struct Memory {
    variables: BTreeMap<u32, u64>,
    /// The variables that are local to functions.
    counts: BTreeMap<u32, u64>,
}

impl Memory {
    /// Adds what `program` has and did not have before.
    pub(crate) fn load(&mut self, program: &Program) {
        for variable in &program.variables {
            self.variables
                .entry(variable.id)
                .or_insert(variable.initial);
        }
        for function in &program.functions {
            if let Some(initial) = function.count {
                self.counts.entry(function.id).or_insert(initial);
            }
        }
    }

    /// What entry `number` of `program` returns.
    pub(crate) fn enter(&mut self, program: &Program, number: u32, x: u64) -> u64 {
        let name = format!("entry{number}");
        let mut functions = program.functions.iter();
        let entry = functions.find(|f| f.name == name).expect("an entry");
        self.call(program, entry, x)
    }

    fn call(&mut self, program: &Program, function: &Function, x: u64) -> u64 {
        let mut r = x;
        self.run(program, function, &function.body, x, &mut r);
        r
    }

    fn run(
        &mut self,
        program: &Program,
        function: &Function,
        body: &[Statement],
        x: u64,
        r: &mut u64,
    ) {
        for statement in body {
            let added = match statement {
                Statement::Add(v) => self.value(function, v, x, *r),
                Statement::Call(callee, _, v) => {
                    let argument = self.value(function, v, x, *r);
                    self.call(program, program.function(*callee), argument)
                }
                Statement::Text(text) => digest(text),
                Statement::Bump(id, v) => {
                    let by = self.value(function, v, x, *r);
                    let variable = self.variables.get_mut(id).expect("loaded");
                    *variable = variable.wrapping_add(by);
                    *variable
                }
                Statement::Count(v) => {
                    let by = self.value(function, v, x, *r);
                    let count = self.counts.get_mut(&function.id).expect("loaded");
                    *count = count.wrapping_add(by);
                    *count
                }
                Statement::Look(table, v) => {
                    let mut tables = program.tables.iter();
                    let table = tables.find(|t| t.id == *table).expect("a table");
                    let at = self.value(function, v, x, *r) % TABLE as u64;
                    table.values[usize::try_from(at).expect("small")]
                }
                Statement::Handle(which, v) => {
                    let which = self.value(function, which, x, *r) % program.handlers.len() as u64;
                    let handler = program.handlers[usize::try_from(which).expect("small")];
                    let argument = self.value(function, v, x, *r);
                    self.call(program, program.function(handler), argument)
                }
                Statement::If(condition, yes, no) => {
                    let odd = self.value(function, condition, x, *r) & 1 == 1;
                    self.run(program, function, if odd { yes } else { no }, x, r);
                    0
                }
                Statement::Switch(v, cases) => {
                    let case = self.value(function, v, x, *r) % cases.len() as u64;
                    let case = &cases[usize::try_from(case).expect("small")];
                    self.run(program, function, case, x, r);
                    0
                }
            };
            *r = r.wrapping_add(added);
        }
    }

    fn value(&self, function: &Function, value: &Value, x: u64, r: u64) -> u64 {
        match value {
            Value::Argument => x,
            Value::Result => r,
            Value::Count => self.counts[&function.id],
            Value::Constant(value) => *value,
            Value::Variable(id) => self.variables[id],
            Value::Both(operator, a, b) => {
                let (a, b) = (self.value(function, a, x, r), self.value(function, b, x, r));
                match operator {
                    '+' => a.wrapping_add(b),
                    '-' => a.wrapping_sub(b),
                    '*' => a.wrapping_mul(b),
                    '^' => a ^ b,
                    '&' => a & b,
                    '|' => a | b,
                    _ => u64::from(a < b),
                }
            }
        }
    }
}

/// As the hypervisor's own: FNV-1a.
fn digest(text: &str) -> u64 {
    let step = |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
    text.bytes().fold(0xcbf2_9ce4_8422_2325, step)
}

// SPDX-License-Identifier: MIT OR Apache-2.0
use super::*;
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use std::io::Write as _;
use std::process::{Command, Stdio};

/// A line, with whether the old and whether the new file has it.
type SourceLine = (String, bool, bool);

fn lines(source: &[SourceLine]) -> Vec<PatchedLine> {
    let mut number = 0;
    let mut lines = Vec::new();
    for (text, old, new) in source {
        number += usize::from(*old);
        if *new {
            lines.push(PatchedLine {
                text: format!("{text}\n"),
                original: old.then_some(number),
            });
        }
    }
    lines
}

/// Lines as a diff shows them: with `+`, `-` or a blank in front.
fn diff(text: &str) -> Vec<SourceLine> {
    let line = |line: &str| {
        let (mark, text) = line.split_at(1);
        (text.to_owned(), mark != "+", mark != "-")
    };
    text.lines().map(line).collect()
}

#[track_caller]
fn becomes(source: &str, expected: &str) {
    let source = diff(source);
    assert_eq!(numbered(&lines(&source), Language::C), expected);
    same_numbers(&source);
}

/// What the preprocessor makes of `text`, in words.
fn preprocessed(text: &str) -> Vec<String> {
    let mut gcc = Command::new("gcc")
        .args(["-E", "-P", "-w", "-x", "c", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("these tests need gcc");
    let mut input = gcc.stdin.take().expect("it is piped");
    input.write_all(text.as_bytes()).expect("written");
    drop(input);
    let output = gcc.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{text}");
    let output = String::from_utf8(output.stdout).expect("text");
    output.split_whitespace().map(str::to_owned).collect()
}

/// The words without the numbers behind `K...`, and those numbers.
fn parted(words: &[String]) -> (Vec<String>, Vec<(String, String)>) {
    let (mut rest, mut numbers) = (Vec::new(), Vec::new());
    let mut words = words.iter();
    while let Some(word) = words.next() {
        rest.push(word.clone());
        if word.starts_with('K') {
            let number = words.next().expect("a number follows");
            numbers.push((word.clone(), number.clone()));
        }
    }
    (rest, numbers)
}

/// Has a preprocessor see that every line of both files has its old number, and
/// that nothing but numbers differs from the new file.
#[track_caller]
fn same_numbers(source: &[SourceLine]) {
    let head = "#define M(name, ...) name __LINE__ [ __VA_ARGS__ ]";
    let head = [(head.to_owned(), true, true)];
    let source: Vec<SourceLine> = head.iter().chain(source).cloned().collect();
    let file = |which: fn(&SourceLine) -> bool| -> String {
        let lines = source.iter().filter(|line| which(line));
        lines.map(|(text, ..)| format!("{text}\n")).collect()
    };
    let text = numbered(&lines(&source), Language::C);
    let (_, old) = parted(&preprocessed(&file(|line| line.1)));
    let (new, _) = parted(&preprocessed(&file(|line| line.2)));
    let (rest, numbers) = parted(&preprocessed(&text));
    assert_eq!(rest, new, "{text}");
    for (name, number) in numbers {
        if let Some((_, before)) = old.iter().find(|(other, _)| *other == name) {
            assert_eq!(&number, before, "{name} in:\n{text}");
        }
    }
}

#[test]
fn lines_that_are_gone_leave_empty_ones() {
    becomes(
        " K1 __LINE__\n-gone\n-too\n K2 __LINE__",
        "K1 __LINE__\n\n\nK2 __LINE__\n",
    );
    becomes(" a\n-old\n+new\n K2 __LINE__", "a\nnew\nK2 __LINE__\n");
}

#[test]
fn a_directive_follows_lines_that_are_new() {
    becomes(
        " K1 __LINE__\n+new\n K2 __LINE__\n z",
        "K1 __LINE__\nnew\n#line 2\nK2 __LINE__\nz\n",
    );
}

#[test]
fn one_more_follows_a_group_that_may_be_skipped() {
    becomes(
        " #ifdef NO\n a\n+new\n b\n #else\n K1 __LINE__\n #endif\n K2 __LINE__",
        "#ifdef NO\na\nnew\n#line 3\nb\n#else\n#line 5\nK1 __LINE__\n#endif\n#line 7\nK2 __LINE__\n",
    );
    // As an include guard: nothing follows.
    becomes(
        " #ifndef H\n+#define H\n K1 __LINE__\n #if 1\n K2 __LINE__\n #endif\n #endif",
        "#ifndef H\n#define H\n#line 2\nK1 __LINE__\n#if 1\nK2 __LINE__\n#endif\n#endif\n",
    );
    becomes(
        " #if 0\n #if 1\n+new\n #endif\n #endif\n K1 __LINE__",
        "#if 0\n#if 1\nnew\n#endif\n#endif\n#line 5\nK1 __LINE__\n",
    );
}

#[test]
fn new_arguments_share_a_line() {
    becomes(
        " M(K1,\n+  new,\n   K2 __LINE__)\n K3 __LINE__",
        "M(K1,   new,\n  K2 __LINE__)\nK3 __LINE__\n",
    );
    becomes(
        " M(K1, // why\n+  new,\n   K2 __LINE__)",
        "M(K1, // why\n  new,\n#line 2\n  K2 __LINE__)\n",
    );
}

#[test]
fn comments_and_continued_lines_keep_their_length() {
    becomes(
        " /* a\n+ b\n+ c\n  d */ K1 __LINE__\n K2 __LINE__",
        "/* a  b  c\n d */ K1 __LINE__\nK2 __LINE__\n",
    );
    becomes(
        " #define X a \\\n+ b \\\n  c\n K1 __LINE__",
        "#define X a  b \\\n c\nK1 __LINE__\n",
    );
    becomes(
        " #define X a \\\n- b \\\n  c\n K1 __LINE__",
        "#define X a \\\n\\\n c\nK1 __LINE__\n",
    );
    becomes(
        " \"a \\\n+b\\\n c\" K1 __LINE__\n+/* new\n  end */ K2 __LINE__",
        "\"a b\\\nc\" K1 __LINE__\n/* new\n*/\n#line 3\n/* end */ K2 __LINE__\n",
    );
}

#[test]
fn assembly_is_never_put_on_one_line() {
    let source = diff(" mov %eax, %ebx # a comment (\n+ nop\n nop");
    assert_eq!(
        numbered(&lines(&source), Language::Assembly),
        "mov %eax, %ebx # a comment (\n nop\n#line 2\nnop\n"
    );
}

/// A part of a source file.
#[derive(Debug, Clone)]
enum Part {
    Code,
    Include,
    Comment(Vec<Presence>),
    LineComment(Vec<Presence>),
    Continued(Vec<Presence>),
    Text(Vec<Presence>),
    Definition(Vec<Presence>),
    Call(Vec<(Presence, Part)>),
    Group {
        condition: bool,
        then: Vec<(Presence, Part)>,
        otherwise: Option<Vec<(Presence, Part)>>,
    },
}

/// Whether the old and whether the new file has it.
type Presence = (bool, bool);

fn presence() -> impl Strategy<Value = Presence> {
    prop_oneof![
        4 => Just((true, true)),
        1 => Just((true, false)),
        2 => Just((false, true)),
    ]
}

fn part() -> impl Strategy<Value = Part> {
    let some = || prop::collection::vec(presence(), 0..4);
    let leaf = prop_oneof![
        4 => Just(Part::Code),
        1 => Just(Part::Include),
        2 => some().prop_map(Part::Comment),
        1 => some().prop_map(Part::LineComment),
        1 => some().prop_map(Part::Continued),
        1 => some().prop_map(Part::Text),
        1 => some().prop_map(Part::Definition),
    ];
    leaf.prop_recursive(3, 24, 5, |inner| {
        let parts = move || prop::collection::vec((presence(), inner.clone()), 0..5);
        prop_oneof![
            parts().prop_map(Part::Call),
            (any::<bool>(), parts(), proptest::option::of(parts())).prop_map(
                |(condition, then, otherwise)| Part::Group {
                    condition,
                    then,
                    otherwise
                }
            ),
        ]
    })
}

#[derive(Default)]
struct Source {
    lines: Vec<SourceLine>,
    names: usize,
    /// How many calls the next line is in: nothing can be included there.
    calls: usize,
}

impl Source {
    fn name(&mut self) -> String {
        self.names += 1;
        format!("K{}", self.names)
    }

    fn line(&mut self, text: String, (old, new): Presence) {
        if old || new {
            self.lines.push((text, old, new));
        }
    }

    /// Lines of something that spans several, with `end` behind each.
    fn span(
        &mut self,
        (start, last): (String, String),
        inner: &[Presence],
        is: Presence,
        end: &str,
    ) {
        self.line(start + end, is);
        for (index, &(old, new)) in inner.iter().enumerate() {
            let both = (old && is.0, new && is.1);
            self.line(format!("  n{index} {end}"), both);
        }
        self.line(last, is);
    }

    fn parts(&mut self, parts: &[(Presence, Part)], is: Presence) {
        for ((old, new), part) in parts {
            self.part(part, (*old && is.0, *new && is.1));
        }
    }

    fn part(&mut self, part: &Part, is: Presence) {
        let name = self.name();
        let code = format!("{name} __LINE__ ,");
        match part {
            Part::Code => self.line(code, is),
            Part::Include if self.calls > 0 => self.line(code, is),
            Part::Include => self.line("#include \"/dev/null\"".to_owned(), is),
            Part::Comment(inner) => {
                let lines = ("code /* it's (".to_owned(), format!("*/ {code}"));
                self.span(lines, inner, is, "");
            }
            Part::LineComment(inner) => {
                self.span(
                    ("code // a (".to_owned(), "b (".to_owned()),
                    inner,
                    is,
                    " \\",
                );
            }
            Part::Continued(inner) => self.span((code.clone(), "end".to_owned()), inner, is, " \\"),
            Part::Text(inner) => {
                let lines = ("\"a ( /*".to_owned(), format!("b\" {code}"));
                self.span(lines, inner, is, " \\");
            }
            Part::Definition(inner) => {
                let define = format!("#define D{name} a (");
                self.span((define, "/* b".to_owned()), inner, is, " \\");
                self.line("c */ )".to_owned(), is);
            }
            Part::Call(inner) => {
                self.line(format!("M({name},"), is);
                self.calls += 1;
                self.parts(inner, is);
                self.calls -= 1;
                self.line("end)".to_owned(), is);
            }
            Part::Group {
                condition,
                then,
                otherwise,
            } => {
                self.line(format!("#if {}", u8::from(*condition)), is);
                self.parts(then, is);
                if let Some(otherwise) = otherwise {
                    self.line(" # else".to_owned(), is);
                    self.parts(otherwise, is);
                }
                self.line("/* so */ #endif /* that's all".to_owned(), is);
                self.line("of it */".to_owned(), is);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 100,
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(1),
        ..ProptestConfig::default()
    })]

    #[test]
    fn every_line_keeps_its_number(parts in prop::collection::vec((presence(), part()), 1..8)) {
        let mut source = Source::default();
        source.parts(&parts, (true, true));
        same_numbers(&source.lines);
    }
}

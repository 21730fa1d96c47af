// SPDX-License-Identifier: MIT OR Apache-2.0
//! An object before and after the patch.

use crate::code::Code;
use crate::pair::Pair;
use crate::problem::Problem;
use crate::tree::{ObjectFile, Tree};
use crate::witness::{self, Build, Compile};
use index_vec::{IndexSlice, define_index_type};
use object::elf;
use std::collections::BTreeSet;
use std::path::Path;
use xsplice_objdiff::compare::{Comparison, compare_knowing};
use xsplice_objdiff::object::Object;
use xsplice_objdiff::shared;

define_index_type! {
    /// A unit among all that the patch changes.
    pub struct UnitId = u32;
}

/// All units that the patch changes.
pub type Units = IndexSlice<UnitId, [Unit]>;

/// An object before and after the patch, with the differences.
#[derive(Debug, Clone)]
pub struct Unit {
    /// The object file.
    pub file: ObjectFile,
    /// Built from the original source; empty for a new object.
    pub original: Object,
    /// Built from the patched source; empty for a removed object.
    pub patched: Object,
    /// The differences.
    pub comparison: Comparison,
    /// The stages of the object in the payloads below, from the first that changes it
    /// to the topmost, whose result is the original.
    pub stages: Vec<Stage>,
}

/// The change of an object by a payload below.
#[derive(Debug, Clone)]
pub struct Stage {
    /// Index of the payload, the lowest being 0.
    pub level: usize,
    /// The object before it.
    pub object: Object,
    /// The comparison of the object before and after it.
    pub comparison: Comparison,
}

impl Unit {
    /// The hypervisor's own object.
    pub fn shipped(&self) -> &Object {
        self.build(0)
    }

    /// The object before the stage at `build`, or the original after the last stage.
    pub(crate) fn build(&self, build: usize) -> &Object {
        let stage = self.stages.get(build);
        stage.map_or(&self.original, |stage| &stage.object)
    }

    /// Compares the two builds of an object; `None` if they are equivalent and no
    /// payload below changed it. `compile` resolves what the objects alone leave
    /// ambiguous; without it, they are only compared, and the result must not be used
    /// for a payload.
    ///
    /// # Errors
    /// If they cannot be compared.
    pub(crate) fn compare(
        tree: &Tree,
        pair: &Pair,
        compile: Option<&Compile>,
    ) -> Result<Option<Self>, Problem> {
        if pair.original == pair.patched && pair.below.is_empty() {
            return Ok(None);
        }
        if pair.object.path.ends_with(".s") {
            return compare_offsets(pair);
        }
        let objects = Objects::read(tree, pair)?;
        let mut unit = objects.compare(pair);
        if let Some(compile) = compile
            && needs_witnesses(&unit)
        {
            let mut objects = Objects::read(tree, pair)?;
            objects.read_with_witnesses(pair, compile)?;
            unit = objects.compare(pair);
        }
        if let Some(compile) = compile {
            unit.settle_locals(pair, compile);
        }
        Ok((!unit.comparison.is_empty() || !unit.stages.is_empty()).then_some(unit))
    }

    /// Matches static variables of functions by debugging information where the
    /// objects are ambiguous, in each step from the hypervisor to the patched source.
    fn settle_locals(&mut self, pair: &Pair, compile: &Compile) {
        let mut builds: Vec<Build> = self.stages.iter().map(|s| Build::Before(s.level)).collect();
        builds.extend([Build::Original, Build::Patched]);
        for (at, step) in builds.windows(2).enumerate() {
            let (old, new) = match self.stages.get(at) {
                Some(_) => (self.build(at), self.build(at + 1)),
                None => (&self.original, &self.patched),
            };
            let comparison = match self.stages.get(at) {
                Some(stage) => &stage.comparison,
                None => &self.comparison,
            };
            let compiled = |build: Build| {
                let object = match build {
                    Build::Patched => &pair.object,
                    Build::Original | Build::Before(_) => pair.original_object(),
                };
                compile(build, &object.with_types(), String::new()).ok()
            };
            let known = crate::locals::settle((old, new), comparison, || {
                Some([compiled(step[0])?, compiled(step[1])?])
            });
            if known.is_empty() {
                continue;
            }
            let settled = compare_knowing(old, new, &known);
            match self.stages.get_mut(at) {
                Some(stage) => stage.comparison = settled,
                None => self.comparison = settled,
            }
        }
    }
}

/// The parsed builds of an object, in order.
struct Objects(Vec<Object>);

/// Whether an object is 32-bit code for x86, which the hypervisor starts in.
fn is_32_bit(object: &[u8]) -> bool {
    /// Position of the machine in the ELF header.
    const MACHINE: usize = 18;
    object.get(MACHINE..MACHINE + 2) == Some(&elf::EM_386.0.to_le_bytes())
}

/// All builds in `pair`, in order.
fn builds(pair: &Pair) -> impl Iterator<Item = (Build, Option<&[u8]>)> {
    let before = pair.below.iter();
    let before = before.map(|b| (Build::Before(b.level), b.bytes.as_deref()));
    before.chain([
        (Build::Original, pair.original.as_deref()),
        (Build::Patched, pair.patched.as_deref()),
    ])
}

impl Objects {
    fn read(tree: &Tree, pair: &Pair) -> Result<Self, Problem> {
        // The build gives the FILE symbol its path after compiling.
        let name = linked_file_name(tree, pair.original_object())
            .unwrap_or(pair.original_object().source.clone());
        let read = |bytes: &[u8]| {
            let source = &pair.object.source;
            if is_32_bit(bytes) {
                let message = format!(
                    "its 32-bit code is only used while booting, and it changed: live patching \
                     cannot re-run boot code; `--leave-out xen/{source}` builds the payload without \
                     this file if the running hypervisor does not need it"
                );
                return Err(Problem::new(Code::BootOnly, source, message));
            }
            let object = Object::read(&pair.object.path, bytes);
            let mut object = object.map_err(|error| Problem::unreadable(source, &error))?;
            object.file.clone_from(&name);
            Ok(object)
        };
        let objects = builds(pair).map(|(_, bytes)| bytes.map(&read).transpose());
        let objects = objects.collect::<Result<Vec<Option<Object>>, _>>()?;
        // What one build lacks is for the machine of the others.
        let arch = objects.iter().flatten().next().map(|object| object.arch);
        let arch = arch.unwrap_or(&xsplice_objdiff::arch::X86_64);
        let objects = objects.into_iter();
        let objects = objects.map(|object| object.unwrap_or_else(|| Object::empty(arch)));
        Ok(Self(objects.collect()))
    }

    fn compare(self, pair: &Pair) -> Unit {
        let Self(mut objects) = self;
        let bytes: Vec<_> = builds(pair).map(|(_, bytes)| bytes).collect();
        let steps = objects.windows(2).zip(bytes.windows(2));
        let mut comparisons: Vec<Comparison> = steps
            .map(|(objects, bytes)| match bytes[0] == bytes[1] {
                // Nothing else distinguishes similar symbols.
                true => Comparison::of_one(&objects[0]),
                false => xsplice_objdiff::compare(&objects[0], &objects[1]),
            })
            .collect();
        let comparison = comparisons.pop().unwrap_or_default();
        // The last two are always there.
        let patched = objects.remove(objects.len() - 1);
        let original = objects.remove(objects.len() - 1);
        let stages = pair.below.iter().zip(objects).zip(comparisons);
        let stages = stages.map(|((before, object), comparison)| Stage {
            level: before.level,
            object,
            comparison,
        });
        Unit {
            file: pair.object.clone(),
            stages: stages.collect(),
            original,
            patched,
            comparison,
        }
    }

    fn read_with_witnesses(&mut self, pair: &Pair, compile: &Compile) -> Result<(), Problem> {
        for ((build, bytes), object) in builds(pair).zip(&mut self.0) {
            if let Some(bytes) = bytes {
                let file = std::mem::take(&mut object.file);
                let compiled = match build {
                    Build::Patched => &pair.object,
                    Build::Original | Build::Before(_) => pair.original_object(),
                };
                *object = witness::read(compiled, (build, bytes), object, compile)?;
                object.file = file;
            }
        }
        Ok(())
    }
}

/// Whether references in the objects are ambiguous without witnesses.
fn needs_witnesses(unit: &Unit) -> bool {
    let needed = |old: &Object, new: &Object, comparison: &Comparison| {
        !new.sections.is_empty() && shared::needs_witness(old, new, comparison)
    };
    let mut stages = unit.stages.iter().enumerate();
    needed(&unit.original, &unit.patched, &unit.comparison)
        || stages.any(|(at, s)| needed(&s.object, unit.build(at + 1), &s.comparison))
}

/// Offsets for assembly code must not change.
fn compare_offsets(pair: &Pair) -> Result<Option<Unit>, Problem> {
    let text = |bytes: &Option<Vec<u8>>| bytes.clone().unwrap_or_default();
    let changed = changed_offsets(&text(&pair.original), &text(&pair.patched));
    if changed.is_empty() {
        return Ok(None);
    }
    Err(Problem::new(
        Code::Layout,
        &pair.object.source,
        format!(
            "the layout of structures changes that assembly code uses ({}): the running \
             hypervisor's assembly and data have the old one; keep the layout of the structure",
            changed.join(", ")
        ),
    ))
}

/// Names of the offsets that differ in two lists for assembly code: lines such
/// as `.ascii "==>#define VCPU_processor 0 ...`.
fn changed_offsets(old: &[u8], new: &[u8]) -> Vec<String> {
    let definitions = |text: &[u8]| -> BTreeSet<String> {
        let text = String::from_utf8_lossy(text).into_owned();
        text.lines()
            .filter_map(|l| Some(l.split_once("==>#define ")?.1.to_owned()))
            .collect()
    };
    let (old, new) = (definitions(old), definitions(new));
    let names: BTreeSet<String> = old
        .symmetric_difference(&new)
        .filter_map(|line| Some(line.split_whitespace().next()?.to_owned()))
        .collect();
    names.into_iter().collect()
}

/// The FILE symbol, in the hypervisor, of the object that the build of the tree linked.
/// Assemblers need not give an object one; then linkers use the name of the object.
fn linked_file_name(tree: &Tree, object: &ObjectFile) -> Option<String> {
    let data = std::fs::read(tree.top.join("xen").join(&object.path)).ok()?;
    let name = Object::read(&object.path, &data).ok()?.file;
    if !name.is_empty() {
        return Some(name);
    }
    let path = Path::new(&object.path).file_name()?;
    Some(path.to_string_lossy().into_owned())
}

#[cfg(test)]
impl Unit {
    /// The comparison of two sources, compiled by gcc with Xen's flags.
    pub(crate) fn of_sources(original: &str, patched: &str) -> Self {
        let [original, patched] = [original, patched]
            .map(|text| Object::read("x.o", &compiled(text, &[])).expect("an object"));
        Self {
            file: ObjectFile {
                path: "x.o".to_owned(),
                command: String::new(),
                output: "x.o".to_owned(),
                source: "x.c".to_owned(),
                dependencies: BTreeSet::new(),
            },
            comparison: xsplice_objdiff::compare(&original, &patched),
            original,
            patched,
            stages: Vec::new(),
        }
    }
}

#[cfg(test)]
pub(crate) fn compiled(text: &str, flags: &[&str]) -> Vec<u8> {
    let directory = tempfile::tempdir().expect("a directory");
    let (c, o) = (directory.path().join("x.c"), directory.path().join("x.o"));
    std::fs::write(&c, text).expect("written");
    let status = std::process::Command::new("gcc")
        .args([
            "-O2",
            "-fpic",
            "-fno-builtin",
            "-fno-asynchronous-unwind-tables",
        ])
        .args(["-fdata-sections", "-ffunction-sections"])
        .args(flags)
        .args(["-c", "-o", "x.o", "x.c"])
        .current_dir(directory.path())
        .status();
    assert!(status.expect("this test needs gcc").success(), "{text}");
    std::fs::read(o).expect("compiled")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The comparison of two sources with debugging information, in which `unsure`
    /// variables are ambiguous from the objects alone.
    fn settled(original: &str, patched: &str, unsure: usize) -> Unit {
        let mut unit = Unit::of_sources(original, patched);
        let ambiguous = &unit.comparison.correlation.ambiguous;
        assert_eq!(ambiguous.len(), unsure, "the objects do not tell");
        let pair = Pair {
            object: unit.file.clone(),
            was: None,
            original: None,
            patched: None,
            below: Vec::new(),
        };
        unit.settle_locals(&pair, &|build, _, _| {
            let text = if build == Build::Patched {
                patched
            } else {
                original
            };
            Ok(compiled(text, &["-g"]))
        });
        unit
    }

    /// Whether the single static variable of `patched` is that of `original`.
    fn is_kept(original: &str, patched: &str) -> bool {
        let unit = settled(original, patched, 1);
        unit.comparison.correlation.ambiguous.is_empty()
    }

    #[test]
    fn a_static_variable_stays_with_its_function_when_that_is_inlined() {
        const SOURCE: &str = "static __attribute__((HOW)) long tick(long x)\n\
            { static long n; n += x; return n; }\nlong call(long x) { return tick(x) + 1; }";
        let inlined = SOURCE.replace("HOW", "always_inline");
        let called = SOURCE.replace("HOW", "noinline");
        assert!(is_kept(&inlined, &called) && is_kept(&called, &inlined));
    }

    #[test]
    fn a_static_variable_of_another_function_is_another_one() {
        const COUNTS: &str = "(long x) { static long n; n += x; return n; }\n";
        const PLAIN: &str = "(long x) { return x; }\n";
        let original = format!("long f{COUNTS}long g{PLAIN}");
        let patched = format!("long f{PLAIN}long g{COUNTS}");
        assert!(!is_kept(&original, &patched));
    }

    /// How many flags of `patched` match those of the same size of `original`, and
    /// how many match none.
    fn flags(original: &str, patched: &str, unsure: usize) -> (usize, usize) {
        let unit = settled(original, patched, unsure);
        let flags = unit.patched.symbols.iter_enumerated();
        let flags = flags.filter(|(_, symbol)| symbol.name.starts_with("once_"));
        let (mut same, mut new) = (0, 0);
        for (index, symbol) in flags {
            match unit.comparison.correlation.original(index) {
                Some(old) => {
                    assert_eq!(unit.original.symbols[old].size, symbol.size, "{patched}");
                    same += 1;
                }
                None => new += 1,
            }
        }
        (same, new)
    }

    #[test]
    fn a_flag_that_a_macro_made_is_that_of_the_same_line() {
        const ONCE: &str = "#define ONCE(type) ({ static type once_; if (!once_) { once_ = 1; \\\n\
            print(); } })\nvoid print(void);\n";
        let source = |lines: [&str; 4]| {
            let lines = lines.join("\n");
            format!(
                "{ONCE}static inline int g(int x)\n{{\n{lines}\nreturn x;\n}}\n\
                int f(int x) {{ return g(x) + 1; }}"
            )
        };
        let (byte, word, long) = ("ONCE(char);", "ONCE(short);", "ONCE(int);");
        let old = source([byte, "", word, ""]);
        let more = source([byte, long, word, "x += 3;"]);
        assert_eq!(flags(&old, &more, 3), (2, 1));
        assert_eq!(flags(&more, &old, 2), (2, 0));
        // The remaining one, the second, is on another line.
        let moved = source([byte, "", "x += 3;", word]);
        assert_eq!(flags(&old, &moved, 2), (2, 0));
        let together = [byte, word].concat();
        let twice = source([&together, "", "", "x += 3;"]);
        assert_eq!(flags(&source([&together, "", "", ""]), &twice, 2), (0, 2));
    }
}

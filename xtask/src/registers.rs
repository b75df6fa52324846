//! Names of virtual registers under which the texts of kernels compress well.
//!
//! LLVM numbers the registers of a function throughout, so that after a difference between two functions all names differ. Here registers
//! that are known in one block alone, a label and the code up to the next, are numbered from 1 in each block. The others come behind
//! them, in the order in which the text names them.
//!
//! A name may serve several blocks because whoever leaves a block does not come back to what such a register holds: its first mention
//! sets it, whatever was there. Where that is not plain, the register counts as one of several blocks.

use std::collections::HashMap;

/// A virtual register: the class, such as `r`, and its number.
type Register<'a> = (&'a str, u32);

/// What is known of a register in the text.
#[derive(Clone, Copy)]
struct Life {
    /// The block of its first mention.
    block: usize,
    /// Whether it is mentioned in no other, and set before it is read.
    is_local: bool,
}

/// The same code with registers renamed. Lines have no comments and no indentation.
pub fn renamed(text: &str) -> String {
    let mut result = String::with_capacity(text.len());
    let mut lines = text.split_inclusive('\n');
    while let Some(line) = lines.next() {
        result += line;
        // a function's body is in braces on lines of their own
        if line.trim_end() != "{" {
            continue;
        }
        let mut body = String::new();
        let mut depth = 1;
        for line in lines.by_ref() {
            body += line;
            depth += line.matches('{').count();
            depth -= line.matches('}').count();
            if depth == 0 {
                break;
            }
        }
        result += &renamed_body(&body);
    }
    result
}

fn renamed_body(body: &str) -> String {
    let classes: Vec<&str> = body.lines().filter_map(declared_class).collect();
    let blocks = blocks(body);
    let mut lives: HashMap<Register, Life> = HashMap::new();
    for (block, text) in blocks.iter().enumerate() {
        for statement in text.split_inclusive(';') {
            let set = set_by(statement);
            for (register, _) in mentions(statement, &classes) {
                let is_set = || {
                    let is_mentioned = |text| mentions(text, &classes).any(|(other, _)| other == register);
                    set.is_some_and(|(set, rest)| is_mentioned(set) && !is_mentioned(rest))
                };
                lives
                    .entry(register)
                    .and_modify(|life| life.is_local &= life.block == block)
                    .or_insert_with(|| Life { block, is_local: is_set() });
            }
        }
    }

    // of each class, the most registers of a block
    let mut local_count: HashMap<&str, u32> = HashMap::new();
    let mut of_block: HashMap<(&str, usize), u32> = HashMap::new();
    for ((class, _), life) in lives.iter().filter(|(_, life)| life.is_local) {
        let count = of_block.entry((class, life.block)).or_default();
        *count += 1;
        let most = local_count.entry(class).or_default();
        *most = (*most).max(*count);
    }

    let mut global_names: HashMap<Register, u32> = HashMap::new();
    let mut last_global = local_count.clone();
    let mut code = String::with_capacity(body.len());
    for text in &blocks {
        let mut local_names: HashMap<Register, u32> = HashMap::new();
        let mut last_local: HashMap<&str, u32> = HashMap::new();
        let mut copied = 0;
        for (register @ (class, _), place) in mentions(text, &classes) {
            let (names, last) = match lives[&register].is_local {
                true => (&mut local_names, &mut last_local),
                false => (&mut global_names, &mut last_global),
            };
            let name = *names.entry(register).or_insert_with(|| {
                let last = last.entry(class).or_default();
                *last += 1;
                *last
            });
            code += &text[copied..place.start];
            code += &name.to_string();
            copied = place.end;
        }
        code += &text[copied..];
    }

    // declarations come first, so that they are in the first block
    let mut result = String::with_capacity(code.len());
    for line in code.split_inclusive('\n') {
        match declared_class(line.trim_end()) {
            Some(class) => {
                let (before, _) = line.split_once('<').expect("a declaration of several");
                result += &format!("{before}<{}>;\n", last_global.get(class).unwrap_or(&0) + 1);
            }
            None => result += line,
        }
    }
    result
}

/// The class of which a line declares registers: `r` of `.reg .b32 %r<7>;`.
fn declared_class(line: &str) -> Option<&str> {
    let (_, declared) = line.strip_prefix(".reg ")?.split_once('%')?;
    let (class, count) = declared.split_once('<')?;
    count.ends_with(">;").then_some(class)
}

/// A function's text cut before each label of LLVM's.
fn blocks(body: &str) -> Vec<&str> {
    let mut blocks = Vec::new();
    let (mut start, mut at) = (0, 0);
    for line in body.split_inclusive('\n') {
        if line.starts_with('$') && at > start {
            blocks.push(&body[start..at]);
            start = at;
        }
        at += line.len();
    }
    blocks.push(&body[start..]);
    blocks
}

/// The registers that a text mentions, in order, each with the place of its number.
fn mentions<'a>(
    text: &'a str,
    classes: &'a [&'a str],
) -> impl Iterator<Item = (Register<'a>, std::ops::Range<usize>)> + 'a {
    text.match_indices('%').filter_map(move |(at, _)| {
        let name = &text[at + 1..];
        let end = name.find(|character: char| !(character.is_ascii_alphanumeric() || "_$".contains(character)));
        let name = &name[..end.unwrap_or(name.len())];
        let class = name.trim_end_matches(|character: char| character.is_ascii_digit());
        let number = name[class.len()..].parse().ok()?;
        let class = classes.iter().find(|known| **known == class)?;
        Some(((*class, number), at + 1 + class.len()..at + 1 + name.len()))
    })
}

/// What a statement plainly sets, and the rest of it. `None` if it may set nothing, or reads what its first operand names.
fn set_by(statement: &str) -> Option<(&str, &str)> {
    const READ_THEIR_FIRST: [&str; 8] = ["bar", "barrier", "bra", "brx", "call", "nanosleep", "setmaxnreg", "wgmma"];
    let mut code = statement.trim_start();
    if code.starts_with('$') {
        code = code.split_once(':')?.1.trim_start();
    }
    code = code.trim_start_matches(|character: char| character == '{' || character.is_whitespace());
    let (instruction, operands) = code.split_once(char::is_whitespace)?;
    let operands = operands.trim_start();
    let name = instruction.split('.').next()?;
    // a predicate may leave what was there
    if name.is_empty() || name.starts_with('@') || READ_THEIR_FIRST.contains(&name) || operands.starts_with('[') {
        return None;
    }
    let end = if operands.starts_with('{') { operands.find('}')? } else { operands.find([',', ';'])? };
    Some(operands.split_at(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_of_one_block_are_numbered_anew() {
        let text = "\
.visible .entry first(
.param .u64 first_param_0
)
{
.reg .pred %p<9>;
.reg .b32 %r<91>;
.reg .b64 \t%rd<5>;
ld.param.b64 %rd4, [first_param_0];
mov.u32 %r31, %tid.x;
mov.b64 {_, %r32}, %rd4;
add.s32 %r33, %r31, %r32;
mov.b32 %r90, 0;
$L__BB0_1:
{ .reg .pred p; setp.eq.u32 p, %r33, 0; @p bra DONE; DONE: }
shl.b32 %r40, %r33, 2;
add.s32 %r90, %r90, %r40;
@%p8 mov.b32 %r50, 3;
add.s32 %r60, %r60, %r50;
setp.lt.u32 %p7, %r90, 9;
@%p7 bra $L__BB0_1;
st.global.b32 [%rd4], %r90;
bar.sync %r70, 128;
mov.u64 %rd3, %clock64;
ret;
}
";
        let expected = "\
.visible .entry first(
.param .u64 first_param_0
)
{
.reg .pred %p<3>;
.reg .b32 %r<8>;
.reg .b64 \t%rd<3>;
ld.param.b64 %rd2, [first_param_0];
mov.u32 %r1, %tid.x;
mov.b64 {_, %r2}, %rd2;
add.s32 %r3, %r1, %r2;
mov.b32 %r4, 0;
$L__BB0_1:
{ .reg .pred p; setp.eq.u32 p, %r3, 0; @p bra DONE; DONE: }
shl.b32 %r1, %r3, 2;
add.s32 %r4, %r4, %r1;
@%p2 mov.b32 %r5, 3;
add.s32 %r6, %r6, %r5;
setp.lt.u32 %p1, %r4, 9;
@%p1 bra $L__BB0_1;
st.global.b32 [%rd2], %r4;
bar.sync %r7, 128;
mov.u64 %rd1, %clock64;
ret;
}
";
        assert_eq!(renamed(text), expected);
    }

    #[test]
    fn functions_have_names_of_their_own() {
        let function = |number| format!("{{\n.reg .b32 %r<90>;\nmov.b32 %r{number}, 1;\nret;\n}}\n");
        let text = format!(".global .b8 table[2] = {{1,\n2}};\n.func a()\n{}.func b()\n{}", function(7), function(80));
        let same = "{\n.reg .b32 %r<2>;\nmov.b32 %r1, 1;\nret;\n}\n";
        assert_eq!(renamed(&text), format!(".global .b8 table[2] = {{1,\n2}};\n.func a()\n{same}.func b()\n{same}"));
    }

    #[test]
    fn what_a_statement_sets() {
        for (statement, set) in [
            ("add.s32 %r1, %r2, 3;", Some("%r1")),
            ("\n$L__BB0_2:\nmov.b64 {_, %r10}, %rd78;", Some("{_, %r10")),
            ("{ shfl.sync.bfly.b32 %r1|%p2, %r3, 1, 31, -1;", Some("%r1|%p2")),
            ("st.global.b32 [%rd1], %r2;", None),
            ("@%p1 mov.b32 %r1, 2;", None),
            ("wgmma.mma_async.sync.aligned {%r1, %r2}, %rd3, %rd4;", None),
            ("bar.sync %r1, 128;", None),
            ("ret;", None),
        ] {
            assert_eq!(set_by(statement).map(|(set, _)| set), set, "{statement}");
        }
    }
}

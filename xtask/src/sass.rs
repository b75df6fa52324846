//! A kernel's machine code, as nvdisasm prints it: its main loops, and what a round of them executes.

use std::collections::{BTreeMap, VecDeque};

use anyhow::{Context, Result, ensure};

/// Kinds of instructions that are counted, and the opcodes of each, which may have modifiers.
pub const KINDS: [(&str, &[&str]); 15] = [
    ("MMA", &["IGMMA", "QGMMA", "HGMMA", "IMMA", "QMMA", "HMMA"]),
    ("MUFU", &["MUFU"]),
    ("MNMX", &["FMNMX", "VIMNMX", "IMNMX"]),
    ("FFMA", &["FFMA"]),
    ("FMUL", &["FMUL"]),
    ("FADD", &["FADD"]),
    ("I2F", &["I2F", "I2FP"]),
    ("F2F", &["F2F", "F2FP"]),
    ("MOV", &["MOV", "IMAD.MOV"]),
    ("SHFL", &["SHFL"]),
    ("R2UR", &["R2UR"]),
    ("LDS", &["LDS"]),
    ("STS", &["STS"]),
    ("LDL", &["LDL"]),
    ("STL", &["STL"]),
];
const TENSOR_CORES: &str = KINDS[0].0;

/// An instruction, and where the program goes from it.
#[derive(Debug)]
pub struct Instruction {
    /// With its modifiers, such as `MUFU.EX2`.
    opcode: String,
    /// What may come next: the following instruction first, then a branch's target.
    successors: Vec<usize>,
}

impl Instruction {
    /// Its kind, if it is counted.
    fn kind(&self) -> Option<&'static str> {
        let is = |opcode: &str| {
            self.opcode.strip_prefix(opcode).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        KINDS.iter().find(|(_, opcodes)| opcodes.iter().any(|opcode| is(opcode))).map(|(kind, _)| *kind)
    }
}

/// How many of some instructions are of each kind, in the order of [`KINDS`].
pub fn count<'a>(instructions: impl IntoIterator<Item = &'a Instruction>) -> [u32; KINDS.len()] {
    let mut counts = [0; KINDS.len()];
    for kind in instructions.into_iter().filter_map(Instruction::kind) {
        counts[KINDS.iter().position(|(other, _)| *other == kind).expect("one of them")] += 1;
    }
    counts
}

/// The instructions of a listing of one kernel.
pub fn parse(listing: &str) -> Result<Vec<Instruction>> {
    let mut labels = BTreeMap::new();
    let mut lines = Vec::new();
    for line in listing.lines().map(str::trim) {
        if let Some(label) = line.strip_suffix(':') {
            labels.insert(label, lines.len());
        } else if let Some((_, code)) = line.strip_prefix("/*").and_then(|line| line.split_once("*/"))
            && let Some((code, _)) = code.split_once(';')
        {
            lines.push(code.trim());
        }
    }
    ensure!(!lines.is_empty(), "the listing has no instructions: is this nvdisasm too new?");
    let instruction = |(index, line): (usize, &&str)| {
        let (predicate, code) = match line.strip_prefix('@').and_then(|line| line.split_once(' ')) {
            Some((predicate, code)) => (Some(predicate), code.trim()),
            None => (None, *line),
        };
        let (opcode, operands) = code.split_once(' ').unwrap_or((code, ""));
        let is = |name: &str| opcode.split('.').next() == Some(name);
        let mut successors = Vec::new();
        // `BRA P6, target` asks a predicate too.
        let always = predicate.is_none() && operands.trim_start().starts_with('`');
        let ends = is("EXIT") && predicate.is_none();
        if !(ends || is("BRA") && always) && index + 1 < lines.len() {
            successors.push(index + 1);
        }
        if is("BRA") {
            let target = operands.split_once("`(").and_then(|(_, target)| target.split_once(')'));
            let target = target.and_then(|(target, _)| labels.get(target));
            successors.push(*target.with_context(|| format!("`{line}` leads nowhere"))?);
        }
        Ok(Instruction { opcode: opcode.into(), successors })
    };
    lines.iter().enumerate().map(instruction).collect()
}

/// What a round of each main loop executes, in the program's order.
///
/// A main loop is an innermost loop with tensor-core instructions. A round is the shortest way around it that passes one, by
/// instructions: without the code for what is rare, and with every wait granted at once.
pub fn main_loops(code: &[Instruction]) -> Vec<Vec<&Instruction>> {
    let mut loops = natural_loops(code);
    let is_product = |index: &usize| code[*index].kind() == Some(TENSOR_CORES);
    loops.retain(|_, body| (0..code.len()).any(|index| body[index] && is_product(&index)));
    let is_innermost = |head: &usize, body: &[bool]| loops.keys().all(|other| other == head || !body[*other]);
    let innermost = loops.iter().filter(|(head, body)| is_innermost(head, body));
    innermost.filter_map(|(head, body)| shortest_round(code, *head, body, is_product)).collect()
}

/// Every loop: its head, through which alone it is entered, and which instructions are in it.
fn natural_loops(code: &[Instruction]) -> BTreeMap<usize, Vec<bool>> {
    let mut predecessors = vec![Vec::new(); code.len()];
    for (index, instruction) in code.iter().enumerate() {
        instruction.successors.iter().for_each(|next| predecessors[*next].push(index));
    }
    let from_start = |except| reach(code.len(), 0, except, |index| &code[index].successors);
    let reachable = from_start(None);
    let mut loops = BTreeMap::new();
    for (head, sources) in predecessors.iter().enumerate() {
        let back: Vec<_> = sources.iter().filter(|source| **source >= head && reachable[**source]).collect();
        if back.is_empty() {
            continue;
        }
        let without_head = from_start(Some(head));
        // A loop's end can't be reached but through its head.
        for &source in back.into_iter().filter(|source| !without_head[**source]) {
            let body = reach(code.len(), source, Some(head), |index| &predecessors[index]);
            let whole = loops.entry(head).or_insert_with(|| vec![false; code.len()]);
            whole.iter_mut().zip(body).for_each(|(whole, part)| *whole |= part);
            whole[head] = true;
        }
    }
    loops
}

/// Which of `count` instructions can be reached from `start` without passing through `except`.
fn reach<'a>(count: usize, start: usize, except: Option<usize>, next: impl Fn(usize) -> &'a Vec<usize>) -> Vec<bool> {
    let mut reached = vec![false; count];
    let mut open = vec![start];
    while let Some(index) = open.pop() {
        if Some(index) != except && !reached[index] {
            reached[index] = true;
            open.extend(next(index));
        }
    }
    reached
}

/// The instructions of the shortest way from a loop's head back to it that passes one of `stations`.
fn shortest_round<'a>(
    code: &'a [Instruction],
    head: usize,
    body: &[bool],
    is_station: impl Fn(&usize) -> bool,
) -> Option<Vec<&'a Instruction>> {
    let mut predecessors = vec![Vec::new(); code.len()];
    for (index, instruction) in code.iter().enumerate() {
        instruction.successors.iter().for_each(|next| predecessors[*next].push(index));
    }
    let from_head = ways(code.len(), head, body, |index| &code[index].successors);
    let to_head = ways(code.len(), head, body, |index| &predecessors[index]);
    let stations = (0..code.len()).filter(|index| body[*index] && is_station(index));
    // A station's round: from the head to it, then on by one of its successors, and back to the head.
    let rounds = stations.filter_map(|station| {
        let mut round = way(&from_head, head, station)?;
        round.reverse();
        let onward = code[station].successors.iter().filter(|next| body[**next]);
        let onward = onward.filter_map(|&next| way(&to_head, head, next)).min_by_key(Vec::len)?;
        round.extend(onward.into_iter().filter(|index| *index != head));
        Some(round)
    });
    rounds.min_by_key(Vec::len).map(|round| round.into_iter().map(|index| &code[index]).collect())
}

/// For every instruction of a loop, the one before it on the shortest way from the loop's head.
fn ways<'a>(count: usize, head: usize, body: &[bool], next: impl Fn(usize) -> &'a Vec<usize>) -> Vec<Option<usize>> {
    let mut came_from = vec![None; count];
    let mut open = VecDeque::from([head]);
    while let Some(index) = open.pop_front() {
        for &next in next(index).iter().filter(|next| body[**next] && **next != head) {
            if came_from[next].is_none() {
                came_from[next] = Some(index);
                open.push_back(next);
            }
        }
    }
    came_from
}

/// The way from `place` back to the head, both included.
fn way(came_from: &[Option<usize>], head: usize, place: usize) -> Option<Vec<usize>> {
    let mut way = vec![place];
    let mut last = place;
    while last != head {
        last = came_from[last]?;
        way.push(last);
    }
    Some(way)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two loops within another, both with rare code inside and a wait that goes on outside; before them a loop without
    /// products.
    const LISTING: &str = "
	.section	.text.kernel,\"ax\",@progbits
.text.kernel:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
.L_x_1:
        /*0010*/                   LDS R2, [R2] ;
        /*0020*/              @!P0 BRA `(.L_x_1) ;
.L_x_2:
        /*0030*/                   IMAD.MOV.U32 R3, RZ, RZ, R2 ;
.L_x_3:
        /*0040*/                   MUFU.EX2 R4, R4 ;
        /*0050*/               @P1 BRA `(.L_x_4) ;
        /*0060*/                   SHFL.BFLY PT, R5, R4, 0x1, 0x1f ;
        /*0070*/                   FMNMX R5, R5, R4, !PT ;
        /*0080*/                   FMNMX R5, R5, R4, !PT ;
.L_x_4:
        /*0090*/                   SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [UR19], R10 ;
        /*00a0*/              @!P0 BRA `(.L_x_8) ;
.L_x_5:
        /*00b0*/                   IGMMA.64x64x32.S8.S8 R92, gdesc[UR20], R92, gsb0 ;
        /*00c0*/               @P0 BRA `(.L_x_3) ;
.L_x_6:
        /*00d0*/                   FSEL R4, R4, RZ, P3 ;
        /*00e0*/                   I2FP.F32.S32 R4, R4 ;
        /*00f0*/                   QGMMA.64x72x32.F32.E4M3.E4M3 R24, R92, gdesc[UR16], R24 ;
        /*0100*/                   BRA P6, `(.L_x_6) ;
        /*0110*/              @!P2 BRA `(.L_x_2) ;
        /*0120*/                   EXIT ;
.L_x_8:
        /*0130*/                   SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [UR19], R10 ;
        /*0140*/              @!P0 BRA `(.L_x_8) ;
        /*0150*/                   BRA `(.L_x_5) ;
.L_x_9:
        /*0160*/                   BRA `(.L_x_9);
        /*0170*/                   NOP;
";

    fn opcodes<'a>(round: &[&'a Instruction]) -> Vec<&'a str> {
        round.iter().map(|instruction| instruction.opcode.as_str()).collect()
    }

    #[test]
    fn main_loops_are_the_innermost_with_products() {
        let code = parse(LISTING).unwrap();
        assert_eq!(code.len(), 24);
        let loops = main_loops(&code);
        assert_eq!(loops.len(), 2);
        assert_eq!(
            opcodes(&loops[0]),
            ["MUFU.EX2", "BRA", "SYNCS.PHASECHK.TRANS64.TRYWAIT", "BRA", "IGMMA.64x64x32.S8.S8", "BRA"]
        );
        assert_eq!(opcodes(&loops[1]), ["FSEL", "I2FP.F32.S32", "QGMMA.64x72x32.F32.E4M3.E4M3", "BRA"]);
    }

    /// A round without products, for warps that have nothing to do, is not the loop's.
    #[test]
    fn a_round_passes_products() {
        let listing = "
.L_x_1:
        /*0000*/              @!P0 BRA `(.L_x_2) ;
        /*0010*/                   MUFU.EX2 R4, R4 ;
        /*0020*/                   IMMA.16832.S8.S8 R4, R8.ROW, R12.COL, R4 ;
        /*0030*/               @P2 BRA `(.L_x_2) ;
        /*0040*/                   FMUL R4, R4, R5 ;
.L_x_2:
        /*0050*/               @P1 BRA `(.L_x_1) ;
        /*0060*/                   EXIT ;
";
        let code = parse(listing).unwrap();
        let loops = main_loops(&code);
        assert_eq!(loops.len(), 1);
        assert_eq!(opcodes(&loops[0]), ["BRA", "MUFU.EX2", "IMMA.16832.S8.S8", "BRA", "BRA"]);
    }

    #[test]
    fn every_loop_is_found_and_nothing_else() {
        let heads: Vec<_> = natural_loops(&parse(LISTING).unwrap()).into_keys().collect();
        // Not `.L_x_5`, which can be reached around the branch back to it; nor `.L_x_9`, which can't be reached.
        assert_eq!(heads, [1, 3, 4, 13, 19]);
    }

    #[test]
    fn instructions_are_counted_by_kind() {
        let code = parse(LISTING).unwrap();
        let counts = count(&code);
        let of = |kind: &str| counts[KINDS.iter().position(|(other, _)| *other == kind).unwrap()];
        assert_eq!(["MMA", "MUFU", "MNMX", "I2F", "MOV", "SHFL", "LDS", "LDL"].map(of), [2, 1, 2, 1, 1, 1, 1, 0]);
    }

    #[test]
    fn listings_that_are_not_understood() {
        assert!(parse("").is_err());
        let nowhere = parse("/*0000*/ BRA `(.L_x_1) ;").unwrap_err().to_string();
        assert!(nowhere.contains("leads nowhere"), "{nowhere}");
    }
}

//! The budgets of compiled kernels: how many registers, bytes of stack and instructions each may have, in a table that is
//! checked in.

use std::fmt::{self, Write};
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use sage_layout::architecture::Architecture;

use crate::project;
use crate::ptxas::Usage;
use crate::sass::{self, KINDS};

const HEAD: &str = "\
# What the compiled kernels have, and may have at most. `cargo xtask check-ptx` compares; with --update it rewrites this.
# A kernel's row counts all of its code; a loop's row what a round of it executes (CONTRIBUTING.md, \"Read a check-ptx
# report\").
";
/// What stands before the compilers' versions.
const COMPILERS: &str = "# Compiled by ";

/// A row's numbers, if it has them: registers, stack, all instructions, and those of each kind.
type Numbers = [Option<u32>; 3 + KINDS.len()];

/// Names of the columns.
fn columns() -> impl Iterator<Item = &'static str> {
    ["registers", "stack", "total"].into_iter().chain(KINDS.iter().map(|(kind, _)| *kind))
}

/// What the kernels of an architecture have, or may have.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Budgets {
    /// Versions of the compilers that make such code. With others, the numbers are others.
    pub compilers: String,
    rows: Vec<Row>,
}

#[derive(Clone, Debug, PartialEq)]
struct Row {
    /// A kernel's symbol; for a loop, `symbol:loop1`.
    place: String,
    numbers: Numbers,
}

/// A row that is not as the budgets say.
#[derive(Debug, PartialEq)]
pub struct Difference {
    /// The kernel's symbol.
    pub kernel: String,
    /// Whether it is worse than allowed, or can't be compared.
    pub is_worse: bool,
    /// What is different.
    pub text: String,
}

/// The file of an architecture's budgets.
pub fn path(architecture: Architecture) -> PathBuf {
    project::root().join("kernels/budgets").join(architecture.name()).with_extension("txt")
}

impl Budgets {
    /// Nothing yet.
    pub fn new(compilers: String) -> Self {
        Self { compilers, rows: Vec::new() }
    }

    /// Adds the rows of a kernel: itself, and its main loops.
    pub fn add(&mut self, symbol: &str, usage: &Usage, listing: &str) -> Result<()> {
        let code = sass::parse(listing).with_context(|| symbol.to_string())?;
        let mut numbers = Numbers::default();
        numbers[0] = Some(usage.registers);
        numbers[1] = Some(usage.stack);
        numbers[2] = Some(code.len() as u32);
        self.rows.push(Row { place: symbol.into(), numbers });
        for (index, round) in sass::main_loops(&code).into_iter().enumerate() {
            let mut numbers = Numbers::default();
            numbers[2] = Some(round.len() as u32);
            for (number, count) in numbers[3..].iter_mut().zip(sass::count(round)) {
                *number = Some(count);
            }
            self.rows.push(Row { place: format!("{symbol}:loop{}", index + 1), numbers });
        }
        Ok(())
    }

    /// Reads what [`Display`](fmt::Display) writes.
    pub fn parse(text: &str) -> Result<Self> {
        let compilers = text.lines().find_map(|line| line.strip_prefix(COMPILERS)).unwrap_or_default().trim().into();
        let mut lines = text.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty());
        let named: Vec<_> = lines.next().unwrap_or_default().split_whitespace().skip(1).collect();
        ensure!(
            columns().eq(named.iter().copied()),
            "its columns are {named:?}, not {:?}",
            columns().collect::<Vec<_>>()
        );
        let row = |line: &str| {
            let (place, numbers) = line.split_once(' ')?;
            let number = |word| if word == "-" { Some(None) } else { Some(Some(str::parse(word).ok()?)) };
            let numbers: Vec<_> = numbers.split_whitespace().map(number).collect::<Option<_>>()?;
            Some(Row { place: place.into(), numbers: numbers.try_into().ok()? })
        };
        let rows = lines.map(|line| row(line).with_context(|| format!("`{line}` is no row"))).collect::<Result<_>>()?;
        Ok(Self { compilers, rows })
    }

    /// How what was found differs from these budgets. Far better is a difference too: such a budget guards nothing.
    pub fn compare(&self, found: &Self) -> Vec<Difference> {
        let mut differences = Vec::new();
        let mut add = |place: &str, is_worse, text| {
            let kernel = place.split(':').next().unwrap_or(place).into();
            differences.push(Difference { kernel, is_worse, text });
        };
        for Row { place, numbers } in &found.rows {
            let Some(budget) = self.rows.iter().find(|row| row.place == *place) else {
                add(place, true, format!("{}has no budget", prefix(place)));
                continue;
            };
            for ((column, found), budget) in columns().zip(numbers).zip(&budget.numbers) {
                let (found, budget) = (found.unwrap_or(0), budget.unwrap_or(0));
                let text = || format!("{}has {found} {}, its budget is {budget}", prefix(place), unit(column));
                if found > budget {
                    add(place, true, text());
                } else if found * 10 < budget * 9 {
                    add(place, false, text());
                }
            }
        }
        let is_gone = |row: &&Row| found.rows.iter().all(|other| other.place != row.place);
        for Row { place, .. } in self.rows.iter().filter(is_gone) {
            add(place, true, format!("{}has a budget, but is not there", prefix(place)));
        }
        differences
    }

    /// Each place whose numbers are others in `new`, and how.
    pub fn changes(&self, new: &Self) -> Vec<(String, String)> {
        let mut changes = Vec::new();
        for Row { place, numbers } in &new.rows {
            let Some(old) = self.rows.iter().find(|row| row.place == *place) else {
                changes.push((place.clone(), "new".into()));
                continue;
            };
            let changed = columns().zip(old.numbers.iter().zip(numbers)).filter(|(_, (old, new))| old != new);
            let text = |number: &Option<u32>| number.map_or("-".into(), |number| number.to_string());
            let changed: Vec<_> =
                changed.map(|(column, (old, new))| format!("{column} {} → {}", text(old), text(new))).collect();
            if !changed.is_empty() {
                changes.push((place.clone(), changed.join(", ")));
            }
        }
        let is_gone = |row: &&Row| new.rows.iter().all(|other| other.place != row.place);
        changes.extend(self.rows.iter().filter(is_gone).map(|row| (row.place.clone(), "gone".into())));
        changes
    }
}

/// Which loop of the kernel a place is.
fn prefix(place: &str) -> String {
    place.split_once(":loop").map_or(String::new(), |(_, number)| format!("main loop {number} "))
}

fn unit(column: &str) -> String {
    match column {
        "registers" => column.into(),
        "stack" => "bytes of stack".into(),
        "total" => "instructions".into(),
        kind => format!("{kind} instructions"),
    }
}

impl fmt::Display for Budgets {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.rows.iter().map(|row| row.place.len()).max().unwrap_or(0);
        write!(formatter, "{HEAD}{COMPILERS}{}\n\n", self.compilers)?;
        let mut line = format!("{:width$}", "kernel");
        columns().try_for_each(|column| write!(line, " {column:>5}"))?;
        writeln!(formatter, "{line}")?;
        for Row { place, numbers } in &self.rows {
            let mut line = format!("{place:width$}");
            for (column, number) in columns().zip(numbers) {
                let text = number.map_or("-".into(), |number| number.to_string());
                write!(line, " {text:>0$}", column.len().max(5))?;
            }
            writeln!(formatter, "{line}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing(exponentials: usize, others: usize) -> String {
        [
            "/*0000*/ LDC R1, c[0x0][0x28] ;\n.L_x_1:\n/*0010*/ IGMMA R1 ;\n",
            &"/*0020*/ MUFU.EX2 R4, R4 ;\n".repeat(exponentials),
            &"/*0030*/ FFMA R4, R4 ;\n".repeat(others),
            "/*0040*/ @P0 BRA `(.L_x_1) ;\n/*0050*/ EXIT ;\n",
        ]
        .concat()
    }

    fn budgets(registers: u32, exponentials: usize, others: usize) -> Budgets {
        let mut budgets = Budgets::new("rustc 1, ptxas 2".into());
        let usage = |registers| Usage { registers, ..Usage::default() };
        budgets.add("attention", &usage(registers), &listing(exponentials, others)).unwrap();
        budgets.add("quantize", &usage(32), "/*0000*/ EXIT ;").unwrap();
        budgets
    }

    #[test]
    fn what_is_written_is_read() {
        let budgets = budgets(160, 64, 20);
        let text = budgets.to_string();
        assert_eq!(Budgets::parse(&text).unwrap(), budgets, "{text}");
        assert!(text.contains("\nattention:loop1         -     -    86     1    64"), "{text}");
        assert!(Budgets::parse(&text.replace("MUFU", "FUFU")).is_err());
        assert!(Budgets::parse(&text.replace("   86", " much")).unwrap_err().to_string().contains("attention:loop1"));
    }

    #[test]
    fn more_than_the_budget_is_worse_and_far_less_is_told() {
        let budget = budgets(160, 64, 20);
        assert_eq!(budget.compare(&budget), []);
        assert_eq!(budget.compare(&budgets(159, 64, 19)), [], "near enough");

        let texts = |found: Budgets| {
            let differences = budget.compare(&found);
            let text = |difference: Difference| (difference.kernel, difference.is_worse, difference.text);
            differences.into_iter().map(text).collect::<Vec<_>>()
        };
        let slower = texts(budgets(160, 66, 18));
        assert_eq!(
            slower,
            [("attention".into(), true, "main loop 1 has 66 MUFU instructions, its budget is 64".into())],
            "though the total is the same"
        );
        let more = texts(budgets(168, 64, 20));
        assert_eq!(more, [("attention".into(), true, "has 168 registers, its budget is 160".into())]);
        let faster = texts(budgets(160, 32, 20));
        assert_eq!(faster.len(), 3, "{faster:?}");
        assert!(faster.iter().all(|(_, is_worse, _)| !is_worse));
    }

    #[test]
    fn changes_are_told_number_by_number() {
        let (old, new) = (budgets(160, 64, 20), budgets(168, 64, 19));
        let expected =
            [("attention", "registers 160 → 168, total 88 → 87"), ("attention:loop1", "total 86 → 85, FFMA 20 → 19")];
        assert_eq!(old.changes(&new), expected.map(|(place, text)| (place.to_string(), text.to_string())));
        assert_eq!(Budgets::default().changes(&new).len(), 3);
        assert_eq!(old.changes(&Budgets::default())[2], ("quantize".into(), "gone".into()));
    }

    #[test]
    fn rows_without_a_counterpart() {
        let (all, none) = (budgets(160, 64, 20), Budgets::new(String::new()));
        let new = none.compare(&all);
        assert_eq!(new.len(), 3);
        assert!(new.iter().all(|difference| difference.is_worse && difference.text.contains("has no budget")));
        let gone = all.compare(&none);
        assert_eq!((gone.len(), gone[1].kernel.as_str()), (3, "attention"));
        assert_eq!(gone[1].text, "main loop 1 has a budget, but is not there");
    }
}

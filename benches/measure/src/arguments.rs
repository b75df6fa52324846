//! The command line that all benchmark programs take.

use std::path::PathBuf;

use crate::Error;

/// SageAttention's benchmarks.
#[derive(clap::Parser, Clone, Debug)]
pub struct Arguments {
    /// Fewer lengths, bursts and calls
    #[arg(long)]
    pub quick: bool,
    /// Measure only what has this in its name, such as gpu/d128/causal/16384/attention/int8-fp8, or one of several texts: int8|torch; if
    /// given more than once, all must match
    #[arg(long, value_name = "TEXT")]
    pub filter: Vec<String>,
    /// Folder for results and charts
    #[arg(long, value_name = "DIR", default_value = "target/bench")]
    pub out: PathBuf,
    /// On the GPU, time PyTorch's attention too, in turn with ours
    #[arg(long)]
    pub peers: bool,
    /// The Python that has PyTorch, for --peers
    #[arg(long, value_name = "PROGRAM", default_value = "python3", requires = "peers")]
    pub python: PathBuf,
    /// `cargo bench` adds it.
    #[arg(long, hide = true)]
    bench: bool,
}

impl Arguments {
    /// Whether the filters let a measurement of this name through.
    pub fn want(&self, name: &str) -> bool {
        self.filter.iter().all(|filter| filter.split('|').any(|text| name.contains(text)))
    }

    /// Makes the folder for results. To be called before anything is measured in vain.
    ///
    /// # Errors
    ///
    /// If it can't be made.
    pub fn make_out(&self) -> Result<(), Error> {
        std::fs::create_dir_all(&self.out).map_err(|source| Error::Write { path: self.out.clone(), source })
    }

    /// The cases that the filters let through; says so if none is left.
    pub fn choose<C>(&self, program: &str, cases: Vec<C>, name: impl Fn(&C) -> String) -> Vec<C> {
        let chosen: Vec<C> = cases.into_iter().filter(|case| self.want(&name(case))).collect();
        if chosen.is_empty() {
            println!("{program}: no measurement's name has {}", self.filter.join(" and "));
        }
        chosen
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Part;
    use crate::made_up::case;
    use clap::{CommandFactory, Parser};

    fn parse(arguments: &[&str]) -> Arguments {
        Arguments::parse_from([&["gpu", "--bench"], arguments].concat())
    }

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
        let none = parse(&[]);
        assert!(!none.quick && !none.peers && none.out.ends_with("target/bench"));
    }

    #[test]
    fn filters_choose_by_name() {
        let cases = || {
            [("full", Part::Attention), ("causal", Part::Attention), ("causal", Part::Quantization)]
                .map(|(mask, part)| case(128, mask, 4096, part, "int8-fp8"))
                .to_vec()
        };
        let count = |filters: &[&str]| parse(filters).choose("gpu", cases(), |case| case.name()).len();
        assert_eq!(count(&[]), 3);
        assert_eq!(count(&["--filter", "causal"]), 2);
        assert_eq!(count(&["--filter", "d128/full"]), 1);
        assert_eq!(count(&["--filter", "causal", "--filter", "quantization"]), 1);
        assert_eq!(count(&["--filter", "cpu"]), 0);
        assert_eq!(count(&["--filter", "cpu|full|quantization"]), 2);
        assert_eq!(count(&["--filter", "full|causal", "--filter", "attention"]), 2);
    }
}

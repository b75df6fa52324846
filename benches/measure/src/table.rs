//! Measurements in the terminal.

use std::fmt::Write;

use crate::{Measurement, Mode, Part};

/// One table: a column a length, a row a part and contender. Empty if there is nothing of this mode.
pub fn render(title: &str, mode: Mode, measurements: &[Measurement]) -> String {
    let of_mode = || measurements.iter().filter(|measurement| measurement.mode == mode);
    let mut lengths: Vec<usize> = of_mode().map(|measurement| measurement.case.length).collect();
    lengths.sort_unstable();
    lengths.dedup();
    let mut rows: Vec<(Part, &str)> = Vec::new();
    for Measurement { case, .. } in of_mode() {
        if !rows.contains(&(case.part, &case.contender)) {
            rows.push((case.part, &case.contender));
        }
    }
    if rows.is_empty() {
        return String::new();
    }

    let mut text = format!("{title}, {}: TOPS ± half the range (microseconds)\n{:32}", mode.name(), "");
    let mut add = |piece: std::fmt::Arguments| text.write_fmt(piece).expect("a String takes everything");
    for length in &lengths {
        add(format_args!("{length:>20}"));
    }
    add(format_args!("\n"));
    for (part, contender) in rows {
        add(format_args!("{:<32}", format!("{} {contender}", part.name())));
        for length in &lengths {
            let found = of_mode().find(|Measurement { case, .. }| {
                (case.part, case.contender.as_str(), case.length) == (part, contender, *length)
            });
            add(format_args!("{:>20}", found.map_or("-".into(), cell)));
        }
        add(format_args!("\n"));
    }
    text
}

fn cell(measurement: &Measurement) -> String {
    let microseconds = measurement.milliseconds.median * 1e3;
    match (measurement.tops.zip(measurement.tops_range()), measurement.gigabytes_per_second) {
        (Some((tops, [slowest, fastest])), _) => {
            format!("{tops:.0} ±{:.0} ({microseconds:.0})", (fastest - slowest) / 2.0)
        }
        (None, Some(speed)) => format!("{speed:.0} GB/s ({microseconds:.0})"),
        (None, None) => format!("({microseconds:.0})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::made_up;

    #[test]
    fn a_row_a_contender_and_a_column_a_length() {
        let mut measurements = made_up::report().measurements;
        measurements.retain(|Measurement { case, .. }| case.head_dim == 128 && case.mask == "full");
        // A peer that failed at one length.
        measurements.retain(|Measurement { case, .. }| case.length != 4096 || case.contender == "int8-fp8");
        let table = render("head_dim 128, full", Mode::Burst, &measurements);
        let lines: Vec<_> = table.lines().collect();
        assert_eq!(lines.len(), 2 + 4, "{table}");
        assert!(lines[0].starts_with("head_dim 128, full, burst: TOPS"));
        assert_eq!(lines[1].split_whitespace().collect::<Vec<_>>(), ["1024", "4096", "16384"]);
        assert!(lines[2].starts_with("attention int8-fp8") && lines[2].ends_with("1100 ±16 (3998)"), "{table}");
        assert!(table.contains("1858 GB/s (325)"), "{table}");
        let peer: Vec<_> = lines[5].split_whitespace().collect();
        assert_eq!((peer[1], peer[5]), ("torch-cudnn-f16", "-"), "{table}");
        assert_eq!(render("", Mode::Burst, &[]), "");
    }
}

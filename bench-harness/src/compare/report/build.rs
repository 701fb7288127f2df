//! What was measured, and where: the machine, and how each allocator was built.

use super::heading;
use crate::compare::engines::CrateBuild;
use crate::compare::record::{Record, Subject};

/// The first section of the report.
pub(super) fn section(record: &Record, markdown: bool) -> String {
    let machine = &record.machine;
    let mut lines = vec![
        heading("Measured", markdown),
        String::new(),
        format!(
            "{} × {}, {} MiB, Linux {}, huge pages: {}, {}; {} rounds, {} scale, profile {}, {:.0} s, {}",
            machine.cpus,
            machine.cpu,
            machine.memory_mib,
            machine.kernel,
            machine.transparent_hugepages,
            machine.rustc,
            record.rounds,
            record.scale.name(),
            record.profile,
            record.seconds,
            record.date
        ),
        String::new(),
    ];
    lines.extend(record.allocators.iter().map(|subject| format!("- {}", describe(subject))));
    lines.join("\n")
}

fn describe(subject: &Subject) -> String {
    let mut text = subject.name.to_owned();
    if let Some(version) = &subject.version {
        text += &format!(" {version}");
    }
    match subject.build.as_deref() {
        Some([]) => text += " (comes with the system)",
        Some(build) => {
            let crates: Vec<String> = build.iter().map(of_crate).collect();
            text += &format!(": {}", crates.join("; "));
        }
        None => text += " (found, not built now: how is not known)",
    }
    if let Some(warning) = &subject.warning {
        text += &format!(" — {}", console::style(warning).red().bold());
    }
    text
}

fn of_crate(build: &CrateBuild) -> String {
    let CrateBuild { name, version, opt_level, .. } = build;
    let mut text = format!("{name} {version}, opt-level {opt_level}");
    if !build.features.is_empty() {
        text += &format!(", features {}", build.features.join(" "));
    }
    if let Some(flags) = &build.native_flags {
        text += &format!(", C compiled with {flags}");
    }
    text
}

//! The setting of a run: the machine, and how each allocator was built.

use crate::compare::engines::CrateBuild;
use crate::compare::record::{Record, Subject};

/// Returns the first section of the report, without its heading.
pub(super) fn section(record: &Record) -> String {
    let machine = &record.machine;
    let mut lines = vec![
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
    text += &format!(": {}", crates(subject).join("; "));
    if let Some(warning) = &subject.warning {
        text += &format!(" — {}", console::style(warning).red().bold());
    }
    text
}

/// Returns how an allocator was built, with one text for each crate.
pub(super) fn crates(subject: &Subject) -> Vec<String> {
    match subject.build.as_deref() {
        Some([]) => vec!["comes with the system".to_owned()],
        Some(build) => build.iter().map(of_crate).collect(),
        None => vec!["found, not built now: how is not known".to_owned()],
    }
}

/// Returns the setting of the measurement, as names and values.
pub(super) fn setting(record: &Record) -> Vec<(&'static str, String)> {
    let machine = &record.machine;
    vec![
        ("processor", format!("{} × {}", machine.cpus, machine.cpu)),
        ("governor", machine.governor.clone()),
        ("memory", format!("{} MiB", machine.memory_mib)),
        ("huge pages", machine.transparent_hugepages.clone()),
        ("kernel", format!("Linux {}", machine.kernel)),
        ("compiler", machine.rustc.clone()),
        ("cargo profile", record.profile.clone()),
        ("rounds", record.rounds.to_string()),
        ("scale", record.scale.name().to_owned()),
        ("took", format!("{:.0} s, builds not included", record.seconds)),
        ("ended", record.date.to_string()),
    ]
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

//! Cgroups that keep a process to some CPUs, or to so much memory.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process;

/// A cgroup below that of this process; removed when dropped, if its processes have ended.
#[derive(Debug)]
pub struct Cgroup(PathBuf);

impl Cgroup {
    /// A cgroup in which a controller can be set by `file`, where version 1 mounts that controller at its usual place, or
    /// version 2 has it. None where there is none, or this process may not make any.
    fn new(controller: &str, file: &str) -> Option<Self> {
        let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
        groups.lines().find_map(|line| {
            // Version 2 has one hierarchy, without a name; version 1 one for each controller.
            let (root, path) = match line.split_once("::") {
                Some((_, path)) => (PathBuf::from("/sys/fs/cgroup"), path),
                None => {
                    let path = line.split_once(&format!(":{controller}:"))?.1;
                    (Path::new("/sys/fs/cgroup").join(controller), path)
                }
            };
            let parent = root.join(path.trim_start_matches('/'));
            let group = Self(parent.join(format!("hayloft-{controller}-{}", process::id())));
            fs::create_dir(&group.0).ok()?;
            group.0.join(file).exists().then_some(group)
        })
    }

    /// A cgroup with a cpuset, without processes. None as above.
    #[must_use]
    pub fn of_cpus() -> Option<Self> {
        let cpuset = Self::new("cpuset", "cpuset.cpus")?;
        // Version 1 wants both before there can be processes.
        for file in ["cpuset.cpus", "cpuset.mems"] {
            let inherited = fs::read(cpuset.0.parent()?.join(file)).ok()?;
            fs::write(cpuset.0.join(file), inherited).ok()?;
        }
        Some(cpuset)
    }

    /// A cgroup whose processes have no more than so many bytes of memory, and are killed when they want more. None as above.
    #[must_use]
    pub fn of_memory(most: usize) -> Option<Self> {
        let (one, two) = ("memory.limit_in_bytes", "memory.max");
        let (group, file) = match Self::new("memory", two) {
            Some(group) => (group, two),
            None => (Self::new("memory", one)?, one),
        };
        fs::write(group.0.join(file), most.to_string()).ok()?;
        // Where there is swap, none of it.
        let _ = fs::write(group.0.join("memory.swap.max"), "0");
        let _ = fs::write(group.0.join("memory.memsw.limit_in_bytes"), most.to_string());
        Some(group)
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

/// Moves this process to the cgroup at a path.
///
/// # Errors
///
/// If the kernel refuses.
pub fn join(group: &Path) -> io::Result<()> {
    fs::write(group.join("cgroup.procs"), process::id().to_string())
}

/// Moves this process to the cpuset at a path, and lets that use one CPU only, or several.
///
/// # Errors
///
/// If the kernel refuses.
pub fn be_kept_to(cpuset: &Path, cpus: &[usize]) -> io::Result<()> {
    let cpus: Vec<_> = cpus.iter().map(usize::to_string).collect();
    fs::write(cpuset.join("cpuset.cpus"), cpus.join(","))?;
    join(cpuset)
}
